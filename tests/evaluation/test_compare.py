"""Two runs over the same rows: what they differ by, read from their folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from velocity.evaluation.compare import compare, comparisons


def judged(folder: Path, right: list[bool], names: list[str] | None = None) -> Path:
    """A complete run over a set of choices, of which so many are right."""
    (folder / "rows").mkdir(parents=True)
    rows: list[dict[str, Any]] = [
        {"id": name, "picked": dict.fromkeys(("sum", "token", "byte"), int(not good)), "answer": 0}
        for name, good in zip(names or [str(i) for i in range(len(right))], right, strict=True)
    ]
    (folder / "rows" / "seen.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "evaluation.json").write_text(json.dumps({"sets": {"seen": {"kind": "choices", "rows": len(rows)}}}))
    return folder


def test_the_difference_is_that_of_the_rows_both_have(tmp_path: Path):
    stock = judged(tmp_path / "stock", [False] * 30 + [True] * 10)
    tuned = judged(tmp_path / "tuned", [True] * 39 + [False])
    found = compare(tuned, stock)["sets"]["seen"]["accuracy"]
    assert found["difference"] == (39 - 10) / 40
    assert found["low"] > 0
    assert found["words"].startswith("better by 72.5 points")


def test_every_run_is_compared_with_the_first_one_and_what_is_no_evaluation_is_left_out(tmp_path: Path):
    first, second, third = (judged(tmp_path / name, [True, False]) for name in ("a", "b", "c"))
    (tmp_path / "training").mkdir()
    found = comparisons([first, tmp_path / "training", second, third])
    assert [(one["run"], one["with"]) for one in found] == [(str(second), str(first)), (str(third), str(first))]


def test_runs_without_a_common_row_have_no_difference(tmp_path: Path):
    one, other = judged(tmp_path / "a", [True], ["x"]), judged(tmp_path / "b", [True], ["y"])
    assert compare(one, other)["sets"] == {}
