"""What is left of a finished job, and that nothing unfinished is taken for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.evaluating import claimed, evaluation_folder, planned, rows_of, stores_of, write_evaluate_job
from velocity.config.evaluate import BenchmarksConfig, EvaluateJob
from velocity.errors import JobError
from velocity.evaluation.measures import Measure
from velocity.evaluation.result import benchmark_file, benchmarks_left, figures_of, finish
from velocity.evaluation.sets import ledger_of
from velocity.evaluation.store import EvalStore
from velocity.runs.folder import RunFolder

SAID = {"path": "chats.jsonl", "kind": "answers", "metrics": ["exact_match"]}


def begun(folder: Path, **changes: Any) -> tuple[RunFolder, EvaluateJob, dict[str, EvalStore]]:
    """A run over the answers of the folder's chats, of which nothing is done."""
    changes = {"data.eval": {"said": {**SAID, "path": str(folder / "chats.jsonl")}}, **changes}
    evaluation_folder(folder, 4)
    loaded = planned(write_evaluate_job(folder / "job.yaml", changes))
    run = claimed(loaded)
    run.shards.mkdir()
    return run, loaded.job, dict(stores_of(folder, changes))


def answer(run: RunFolder, store: EvalStore, **changes: Any) -> None:
    """Every row is answered with what is known of it."""
    lines = [
        {"row": row, "completion": store[row].told["reference"][0], "finish_reason": "stop", **changes}
        for row in range(len(store))
    ]
    ledger_of(run, "said", store).write(0, lines)


def test_scores_stand_in_each_row_and_their_mean_in_the_figures(tmp_path: Path):
    run, job, sets = begun(tmp_path)
    answer(run, sets["said"])
    finish(run, job, sets)
    assert [row["scores"] for row in rows_of(run.path, "said")] == [{"exact_match": 1.0}] * 4
    figures = json.loads(run.evaluation.read_text())
    assert figures["sets"]["said"]["measures"]["exact_match"]["value"] == 1.0
    assert run.status()["state"] == "complete" and not run.shards.exists()


def test_rows_that_failed_by_themselves_fail_the_job_and_are_named(tmp_path: Path):
    run, job, sets = begun(tmp_path)
    answer(run, sets["said"], completion=None, error="out of memory, alone in its batch")
    with pytest.raises(JobError, match="4 of 4 rows of said failed by themselves, the first: out of memory"):
        finish(run, job, sets)
    assert not run.evaluation.exists() and run.shards.exists()


def test_a_shard_that_did_not_come_from_another_node_is_missed(tmp_path: Path):
    run, job, sets = begun(tmp_path)
    with pytest.raises(JobError, match="1 of 1 shards of said did not come"):
        finish(run, job, sets)


def test_a_benchmark_is_left_until_its_file_is_there(tmp_path: Path):
    run, job, _ = begun(tmp_path)
    job = job.model_copy(update={"benchmarks": BenchmarksConfig(tasks=("arc_easy", "mine/one"))})
    assert benchmarks_left(run, job) == ["arc_easy", "mine/one"]
    benchmark_file(run, "mine/one").write_text("{}")
    assert benchmarks_left(run, job) == ["arc_easy"]


def test_an_interval_stands_beside_each_value():
    found = figures_of(Measure("higher", [1.0, 0.0] * 50), 0)
    assert found["value"] == 0.5 and found["low"] == pytest.approx(1 - found["high"])
    # 1.96 standard errors of 0.05
    assert found["low"] == pytest.approx(0.402, abs=0.005)
    ratio = figures_of(Measure("lower", [2.0] * 50 + [4.0] * 50, [1.0] * 100), 0)
    assert ratio["value"] == 3.0 and ratio["low"] < 3.0 < ratio["high"]
