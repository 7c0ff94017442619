"""A rank of a generate job, in this process or on two: every row once and in order, whatever was done before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from torch import Tensor

from tests.generating import (
    Cramped,
    claimed,
    completions,
    greedy,
    inputs_of,
    largest_file,
    planned,
    question_folder,
    questions,
    whole_model,
    write_generate_job,
)
from tests.pool import Pool
from velocity.data.tokenizer import load_tokenizer
from velocity.distributed.comm import Ranks
from velocity.errors import InterruptedRun, JobError
from velocity.inference import build
from velocity.inference.engine import Step
from velocity.inference.ledger import Ledger
from velocity.inference.request import Completion, Request, seed_of
from velocity.inference.run import Speaker, generate
from velocity.inference.text import Spoken
from velocity.runs.folder import RunFolder

ROWS = 40  # shards of 16, 16 and 8


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return question_folder(tmp_path_factory.mktemp("run"), ROWS)


def claim_in(folder: Path, output: Path, **changes: Any) -> RunFolder:
    """The run folder of a job over the folder's questions."""
    path = write_generate_job(folder / "job.yaml", {"output": str(output), **changes})
    return claimed(planned(path))


def ledger_of(folder: Path, run: RunFolder) -> Ledger:
    return Ledger(run.shards, inputs_of(planned(folder / "job.yaml").job).prompts.lengths)


@pytest.fixture(name="expected", scope="module")
def _expected(folder: Path) -> list[str]:
    """Each row's completion, by transformers alone."""
    job = planned(write_generate_job(folder / "job.yaml")).job
    prompts, model = inputs_of(job).prompts, whole_model(folder / "model")
    spoken = Spoken(load_tokenizer(folder / "model"), job.generation, folder / "model")
    found = [greedy(model, prompts.ids(row), 8, spoken.ends) for row in range(ROWS)]
    assert len({tuple(ids) for ids in found}) > ROWS / 2
    return [spoken.text(prompts.ids(row), ids) for row, ids in enumerate(found)]


def test_every_row_is_answered_once_in_input_order_beside_its_own_fields(
    folder: Path, tmp_path: Path, expected: list[str]
):
    run = claim_in(folder, tmp_path / "run")
    generate(run, Ranks())
    lines = completions(run.path)
    assert [line["completion"] for line in lines] == expected
    assert [{name: line[name] for name in ("number", "prompt")} for line in lines] == questions(ROWS)
    prompts = inputs_of(planned(folder / "job.yaml").job).prompts
    assert [line["id"] for line in lines] == [prompts.id(row) for row in range(ROWS)]
    assert [line["prompt_tokens"] for line in lines] == prompts.lengths.tolist()
    assert {line["finish_reason"] for line in lines} <= {"stop", "length"}
    assert not any("error" in line or "logprobs" in line or "sample" in line for line in lines)


def test_a_finished_run_says_so_has_no_shards_left_and_tells_what_its_completions_are_like(
    folder: Path, tmp_path: Path
):
    run = claim_in(folder, tmp_path / "run")
    generate(run, Ranks())
    assert run.status()["state"] == "complete"
    assert run.result == run.path / "completions.jsonl"
    assert not run.shards.exists()
    lines, (last,) = completions(run.path), [line for line in run.lines() if "completed" in line]
    lengths = sorted(line["prompt_tokens"] for line in lines)
    told = last["completed"]
    assert last["step"] == told["completions"] == ROWS
    # of 40 sorted values the median and the 90th percentile are no fewer than half and nine tenths of the 39 steps:
    # the values 20 and 36, from 0; and the 99th is the last
    assert told["prompt_tokens"] == {
        "50": lengths[20], "90": lengths[36], "99": lengths[39], "100": lengths[39]
    }  # fmt: skip
    reasons = [line["finish_reason"] for line in lines]
    assert told["finish_reasons"] == {reason: reasons.count(reason) for reason in set(reasons)}


def test_what_was_done_before_is_kept_and_not_done_again(folder: Path, tmp_path: Path, expected: list[str]):
    run = claim_in(folder, tmp_path / "run")
    ledger = ledger_of(folder, run)
    old = [
        {"row": int(row), "completion": f"from before {row}", "finish_reason": "stop", "prompt_tokens": 1,
         "completion_tokens": 2}
        for row in sorted(ledger.shards[1])
    ]  # fmt: skip
    ledger.write(1, old)
    generate(run, Ranks())
    before = {line["row"]: line["completion"] for line in old}
    assert [line["completion"] for line in completions(run.path)] == [
        before.get(row, text) for row, text in enumerate(expected)
    ]


def test_a_run_whose_shards_are_all_there_needs_no_model(
    folder: Path, tmp_path: Path, expected: list[str], monkeypatch: pytest.MonkeyPatch
):
    def unasked(*arguments: object) -> None:
        raise AssertionError("a model was loaded")

    run = claim_in(folder, tmp_path / "run")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("velocity.inference.run.finish", lambda *arguments: None)  # killed before it
        generate(run, Ranks())
    assert run.result is None
    monkeypatch.setattr(build, "build_engine", unasked)
    generate(run, Ranks())
    assert [line["completion"] for line in completions(run.path)] == expected


def test_a_torn_shard_is_done_again(folder: Path, tmp_path: Path, expected: list[str]):
    run = claim_in(folder, tmp_path / "run")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("velocity.inference.run.finish", lambda *arguments: None)
        generate(run, Ranks())
    path = ledger_of(folder, run).path(0)
    path.write_bytes(path.read_bytes()[:-20])
    generate(run, Ranks())
    assert [line["completion"] for line in completions(run.path)] == expected


@pytest.mark.parametrize("turns", [0, 1, 12, 30])
def test_a_stopped_run_keeps_whole_shards_and_goes_on_to_the_same_end(
    folder: Path, tmp_path: Path, expected: list[str], turns: int
):
    run, asked = claim_in(folder, tmp_path / "run", **{"batch.rows": 8}), iter(range(1000))
    with pytest.raises(InterruptedRun, match="finished rows are kept") as caught:
        generate(run, Ranks(), lambda: next(asked) >= turns)
    assert caught.value.exit_status == 75
    unfinished = ledger_of(folder, run).unfinished()
    # a turn is a token of 8 rows: two batches of 8 tokens are a shard of 16
    assert len(unfinished) == (2 if turns == 30 else 3)
    assert run.result is None
    generate(run, Ranks())
    assert [line["completion"] for line in completions(run.path)] == expected


def test_samples_have_a_seed_of_their_own_and_stand_beside_each_other(folder: Path, tmp_path: Path):
    asked = {"generation.temperature": 1.0, "generation.completions": 3, "generation.logprobs": True}
    one, other = (claim_in(folder, tmp_path / name, **asked, **{"batch.rows": n}) for name, n in (("a", 64), ("b", 5)))
    for run in (one, other):
        generate(run, Ranks())
    lines = completions(one.path)
    said = [line["completion"] for line in lines]
    assert said == [line["completion"] for line in completions(other.path)], "whatever rows were beside them"
    assert [(line["number"], line["sample"]) for line in lines] == [(row, i) for row in range(ROWS) for i in range(3)]
    assert len({line["completion"] for line in lines[:3]}) == 3
    for line in lines:
        assert len(line["logprobs"]) == line["completion_tokens"]
        assert all(round(value, 6) == value <= 0 for value in line["logprobs"])
    reseeded = claim_in(folder, tmp_path / "c", **asked, seed=1)
    generate(reseeded, Ranks())
    assert [line["completion"] for line in completions(reseeded.path)] != said


def test_a_table_holds_what_the_lines_do(folder: Path, tmp_path: Path, expected: list[str]):
    run = claim_in(folder, tmp_path / "run", **{"generation.format": "parquet", "generation.logprobs": True})
    generate(run, Ranks())
    assert run.result == run.path / "completions.parquet"
    rows = pyarrow.parquet.read_table(run.result).to_pylist()
    assert [row["completion"] for row in rows] == expected
    assert [row["number"] for row in rows] == list(range(ROWS))
    assert all(len(row["logprobs"]) == row["completion_tokens"] for row in rows)


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_row_that_failed_is_there_with_its_reason_and_is_tried_again(
    folder: Path, tmp_path: Path, expected: list[str], form: str
):
    prompts, bad = inputs_of(planned(write_generate_job(folder / "job.yaml")).job).prompts, 7
    own = prompts.ids(bad)[len(prompts.shared) :]
    assert [row for row in range(ROWS) if prompts.ids(row)[-len(own) :] == own] == [bad]
    run = claim_in(folder, tmp_path / "run", **{"generation.format": form})

    class Failing(Cramped):
        """Its memory does not hold that one prompt."""

        def forward(self, step: Step) -> Tensor:
            self.most = 0 if any(ids[-len(own) :] == own for ids in step.ids_BQ.tolist()) else 99
            return super().forward(step)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(build, "build_engine", lambda *arguments: Failing(whole_model(folder / "model"), 99))
        with pytest.raises(JobError, match="1 of 40 rows failed by themselves, the first: out of memory") as caught:
            generate(run, Ranks())
    assert f"id {prompts.id(bad)}" in caught.value.problems[0].where
    assert run.result is not None
    lines = completions(run.path) if form == "jsonl" else pyarrow.parquet.read_table(run.result).to_pylist()
    assert [line["completion"] for line in lines] == [None if row == bad else expected[row] for row in range(ROWS)]
    assert lines[bad]["finish_reason"] == "error" and "out of memory" in lines[bad]["error"]
    assert run.status()["state"] != "complete" and run.shards.is_dir()

    generate(run, Ranks())
    lines = completions(run.path) if form == "jsonl" else pyarrow.parquet.read_table(run.result).to_pylist()
    assert [line["completion"] for line in lines] == expected
    assert run.status()["state"] == "complete" and not any(line.get("error") for line in lines)


def test_a_shard_that_the_disk_does_not_hold_ends_the_run_and_leaves_those_before_it(
    folder: Path, tmp_path: Path, expected: list[str]
):
    run = claim_in(folder, tmp_path / "run", **{"batch.rows": 8})
    ledger = ledger_of(folder, run)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("velocity.inference.run.finish", lambda *arguments: None)
        generate(run, Ranks())
    sizes = [ledger.path(shard).stat().st_size for shard in range(3)]
    for shard in (0, 1):
        ledger.path(shard).unlink()
    with largest_file(min(sizes) - 1), pytest.raises(OSError) as caught:  # noqa: PT011 - its file is looked at
        generate(run, Ranks())
    assert caught.value.filename == str(ledger.path(0))
    assert sorted(path.name for path in run.shards.iterdir()) == ["00000002.jsonl"]
    generate(run, Ranks())
    assert [line["completion"] for line in completions(run.path)] == expected


def speaker(folder: Path, **changes: Any) -> Speaker:
    job = planned(write_generate_job(folder / "job.yaml", changes)).job
    return Speaker(job, inputs_of(job).prompts, Spoken(load_tokenizer(folder / "model"), job.generation, folder))


def test_a_row_asks_for_each_of_its_completions_with_a_seed_of_its_own(folder: Path):
    speaks = speaker(folder, **{"generation.completions": 2, "generation.temperature": 1.0, "seed": 5})
    name, ids = speaks.prompts.id(3), speaks.prompts.ids(3)
    assert speaks.requests_of(3) == [
        Request(3, 0, ids, seed_of(5, name, 0)), Request(3, 1, ids, seed_of(5, name, 1)),
    ]  # fmt: skip


def test_a_line_says_what_a_completion_is_or_why_there_is_none(folder: Path):
    speaks = speaker(folder, **{"generation.logprobs": True})
    (end,) = speaks.spoken.ends
    ids = load_tokenizer(folder / "model")("So it is", add_special_tokens=False)["input_ids"]
    request = Request(2, 0, [5, 6, 7])
    done = Completion([*ids, end], "stop", [-0.12345678] * (len(ids) + 1))
    assert speaks.describe(request, done) == {
        "row": 2, "completion": "So it is", "finish_reason": "stop", "prompt_tokens": 3,
        "completion_tokens": len(ids) + 1, "logprobs": [-0.123457] * (len(ids) + 1),
    }  # fmt: skip
    assert speaks.describe(request, Completion([], "error", error="out of memory")) == {
        "row": 2, "completion": None, "finish_reason": "error", "prompt_tokens": 3, "completion_tokens": 0,
        "logprobs": [], "error": "out of memory",
    }  # fmt: skip


def generate_on(ranks: Ranks, run: Path, stop_after: int | None = None) -> str:
    """Take part in a run as one of its ranks; how it ended. A stop comes after so many turns, later to rank 0."""
    asked = iter(range(10**9))

    def stopping() -> bool:
        return stop_after is not None and next(asked) >= stop_after + 5 * ranks.first

    try:
        generate(RunFolder(run), ranks, stopping)
    except InterruptedRun:
        return "interrupted"
    return "done"


@pytest.mark.parametrize("engine", ["transformers", "deepspeed", "zero"])
def test_two_ranks_answer_each_row_once_whatever_the_engine(
    pool: Pool, folder: Path, tmp_path: Path, expected: list[str], engine: str
):
    changes = {"generation.engine": engine, "launch.processes": 2, "batch.rows": 4}
    run = claim_in(folder, tmp_path / "run", **changes)
    assert pool(generate_on, run.path) == ["done", "done"]
    assert [line["completion"] for line in completions(run.path)] == expected
    told = [line for line in run.lines() if "rows_per_second" in line]
    assert told[-1]["rows"] == ROWS, "rows are counted once, by whoever leads"
    lines = completions(run.path)
    assert told[-1]["tokens"] == sum(line["completion_tokens"] for line in lines)


@pytest.mark.parametrize(("engine", "beams"), [("transformers", 1), ("zero", 1), ("zero", 2)])
def test_a_rank_for_which_there_is_no_shard_waits_for_the_other(pool: Pool, tmp_path: Path, engine: str, beams: int):
    question_folder(tmp_path, 3)
    changes = {"launch.processes": 2, "generation.engine": engine, "generation.beams": beams}
    run = claim_in(tmp_path, tmp_path / "run", **changes)
    assert pool(generate_on, run.path) == ["done", "done"]
    assert [line["number"] for line in completions(run.path)] == [0, 1, 2]


@pytest.mark.parametrize("engine", ["deepspeed", "zero"])
def test_where_ranks_compute_together_one_that_is_stopped_stops_both_and_nothing_is_lost(
    pool: Pool, folder: Path, tmp_path: Path, expected: list[str], engine: str
):
    changes = {"generation.engine": engine, "launch.processes": 2, "batch.rows": 4}
    run = claim_in(folder, tmp_path / "run", **changes)
    assert "interrupted" in pool(generate_on, run.path, 20)
    assert run.result is None
    generate(run := claim_in(folder, tmp_path / "run"), Ranks())  # goes on with one process and plain transformers
    assert [line["completion"] for line in completions(run.path)] == expected
    assert json.loads(run.environment.read_text())["world_size"] == 1
