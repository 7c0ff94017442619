"""`velocity run` with rows that the audit drops: the run that a corpus without them gives."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from tests.commands import losses, velocity
from tests.making import tiny_model_folder, write_job, write_jsonl
from tests.running import WORDS


def text(number: int) -> dict[str, str]:
    """Forty words, others for each number."""
    return {"text": " ".join(Random(number).choices(WORDS, k=40))}


def test_rows_that_are_dropped_are_told_and_train_nothing(tmp_path: Path) -> None:
    clean, held_out = [text(number) for number in range(30)], [text(number) for number in range(100, 104)]
    again, leaked = clean[3], {"text": f"{text(50)['text']} {held_out[2]['text']}"}
    write_jsonl(tmp_path / "held_out.jsonl", held_out)
    write_jsonl(tmp_path / "clean.jsonl", clean)
    write_jsonl(tmp_path / "planted.jsonl", [*clean[:10], again, *clean[10:20], leaked, *clean[20:]])
    tiny_model_folder(tmp_path / "model")
    for name in ("clean", "planted"):
        job = write_job(
            tmp_path / f"{name}.yaml",
            task="pretrain",
            output=str(tmp_path / name),
            data={
                "train": str(tmp_path / f"{name}.jsonl"),
                "eval": {"unseen": str(tmp_path / "held_out.jsonl")},
                "audit": {"duplicates": "drop", "overlap": "drop"},
            },
            duration={"epochs": 1},
        )
        done = velocity("run", job)
        assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "planted") == losses(tmp_path / "clean")
    rejected = [json.loads(line) for line in (tmp_path / "planted" / "rejected.jsonl").read_text().splitlines()]
    assert [row["line"] for row in rejected] == [11, 22]
    assert not (tmp_path / "clean" / "rejected.jsonl").exists()
    assert "left out" in (tmp_path / "planted" / "report.html").read_text()
