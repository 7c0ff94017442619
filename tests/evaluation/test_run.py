"""A rank of an evaluate job, in this process or on two: every row once, scored as plain transformers scores it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.evaluating import (
    claimed,
    evaluation_folder,
    logprobs_alone,
    planned,
    rows_of,
    said,
    stores_of,
    write_evaluate_job,
)
from tests.pool import Pool
from velocity.distributed.comm import Ranks
from velocity.errors import InterruptedRun
from velocity.evaluation.run import evaluate
from velocity.runs.folder import RunFolder

ROWS = 24  # shards of 16 and 8


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return evaluation_folder(tmp_path_factory.mktemp("evaluate"), ROWS)


@pytest.fixture(name="expected", scope="module")
def _expected(folder: Path) -> dict[str, list[list[float]]]:
    """Each row's log-probabilities by transformers alone, option by option."""
    sets = stores_of(folder)
    return {
        name: [logprobs_alone(folder / "model", sets[name][row]) for row in range(len(sets[name]))]
        for name in ("texts", "choices", "pairs")
    }


def claim_in(folder: Path, output: Path, **changes: Any) -> RunFolder:
    return claimed(planned(write_evaluate_job(folder / "job.yaml", {"output": str(output), **changes})))


def check_rows(run: Path, expected: dict[str, list[list[float]]]) -> None:
    for name in ("choices", "pairs"):
        rows = rows_of(run, name)
        assert [row["row"] for row in rows] == list(range(ROWS))
        for row, logprobs in zip(rows, expected[name], strict=True):
            assert row["logprobs"] == pytest.approx(logprobs, abs=1e-4)
            assert row["picked"]["sum"] == max(range(len(logprobs)), key=logprobs.__getitem__)
    for row, logprobs in zip(rows_of(run, "texts"), expected["texts"], strict=True):
        assert row["logprob"] == pytest.approx(sum(logprobs), abs=1e-3)


def test_every_row_is_scored_as_transformers_scores_it_alone(
    folder: Path, tmp_path: Path, expected: dict[str, list[list[float]]]
):
    run = claim_in(folder, tmp_path / "run")
    evaluate(run, Ranks())
    check_rows(run.path, expected)
    assert len(rows_of(run.path, "said")) == ROWS
    assert run.status()["state"] == "complete"
    assert run.result == run.path / "evaluation.json"
    assert not run.shards.exists()


def test_the_figures_are_those_of_the_rows(folder: Path, tmp_path: Path):
    run = claim_in(folder, tmp_path / "run")
    evaluate(run, Ranks())
    sets = json.loads(run.evaluation.read_text())["sets"]
    rows = rows_of(run.path, "choices")
    right = sum(row["picked"]["sum"] == row["answer"] for row in rows)
    accuracy = sets["choices"]["measures"]["accuracy"]
    assert accuracy["value"] == pytest.approx(right / ROWS)
    assert accuracy["low"] < accuracy["value"] < accuracy["high"]
    texts = rows_of(run.path, "texts")
    nats, tokens, size = (sum(row[name] for row in texts) for name in ("logprob", "tokens", "bytes"))
    assert sets["texts"]["measures"]["perplexity"]["value"] == pytest.approx(math.exp(-nats / tokens))
    assert sets["texts"]["measures"]["bits_per_byte"]["value"] == pytest.approx(-nats / size / math.log(2))


def test_rows_of_texts_say_how_the_text_begins(folder: Path, tmp_path: Path):
    run = claim_in(folder, tmp_path / "run")
    evaluate(run, Ranks())
    texts = [row["text"] for row in rows_of(run.path, "texts")]
    assert texts[0] == said(0, 5)
    assert texts[-1] == f"{said(11, 5 + 9 * 11)[:500]} …"


def test_lines_of_progress_name_the_set_and_count_on_over_all_of_them(folder: Path, tmp_path: Path):
    run = claim_in(folder, tmp_path / "run")
    evaluate(run, Ranks())
    told = [(line["set"], line["step"]) for line in run.lines() if "set" in line]
    assert dict(told) == {"choices": 24, "pairs": 48, "texts": 60, "said": 84}, "answers last; in the job file's order"
    assert [step for _, step in told] == sorted(step for _, step in told)


def _evaluate_on(ranks: Ranks, run: Path) -> None:
    evaluate(RunFolder(run), ranks)


@pytest.mark.parametrize("engine", ["transformers", "deepspeed", "zero"])
def test_two_ranks_come_to_the_same_with_every_engine(
    folder: Path, tmp_path: Path, expected: dict[str, list[list[float]]], pool: Pool, engine: str
):
    changes = {"generation.engine": engine, "launch": {"processes": 2}}
    run = claim_in(folder, tmp_path / engine, **changes)
    pool(_evaluate_on, run.path)
    check_rows(run.path, expected)


def test_a_run_that_is_stopped_goes_on_and_scores_no_row_twice(
    folder: Path, tmp_path: Path, expected: dict[str, list[list[float]]]
):
    run = claim_in(folder, tmp_path / "run")
    asked = iter(range(1000))
    with pytest.raises(InterruptedRun):
        evaluate(run, Ranks(), lambda: next(asked) > 2)
    before = {path.name: path.stat().st_mtime_ns for path in run.shards.glob("*.jsonl")}
    assert before
    kept = {name: (run.shards / name).read_text() for name in before}
    stamped = {}
    for name, text in kept.items():  # a row that was done is told from one that is done again
        stamped[name] = text.replace('"row"', '"before": true, "row"')
        (run.shards / name).write_text(stamped[name])
    evaluate(run, Ranks())
    check_rows(run.path, expected)
    marked = sum(row.get("before", False) for name in ("choices", "pairs") for row in rows_of(run.path, name))
    assert marked == sum(text.count('"row"') for name, text in kept.items() if not name.startswith(("texts", "said")))
