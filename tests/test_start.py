"""How a run ends is what its folder and its exit status say together."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.making import write_job
from velocity import start
from velocity.config.load import load_job
from velocity.config.resolved import render
from velocity.config.training import TrainingJob
from velocity.distributed import failure, pulse
from velocity.distributed.failure import Failure
from velocity.errors import InterruptedRun, JobError, MemoryFull
from velocity.launch import local
from velocity.runs.folder import RunFolder
from velocity.start import conclude


@pytest.fixture(name="run")
def _run(tmp_path: Path) -> RunFolder:
    found = RunFolder(tmp_path / "run")
    found.path.mkdir()
    found.job.write_text(render(load_job(write_job(tmp_path / "job.yaml"))))
    return found


@pytest.mark.parametrize("result", ["model", "completions.jsonl", "completions.parquet"])
def test_a_complete_run_ends_well_and_names_its_result(run: RunFolder, capsys: pytest.CaptureFixture[str], result: str):
    (run.path / result).mkdir() if result == "model" else (run.path / result).touch()
    run.set_status("complete")
    conclude(run, 0)
    assert capsys.readouterr().err == f"done: {run.path / result}\n"


def test_a_run_that_was_stopped_is_interrupted_not_failed(run: RunFolder):
    run.set_status("interrupted", why="stopped after step 3, and saved")
    with pytest.raises(InterruptedRun, match="stopped after step 3"):
        conclude(run, 75)
    assert run.status()["state"] == "interrupted"


@pytest.mark.parametrize("status", [1, 2])
def test_a_run_that_failed_has_the_cause_and_the_exit_status_of_the_rank_that_knew(run: RunFolder, status: int):
    run.set_status("running")
    failure.record(run.failures, 1, Failure("the gradient was not finite\n  where: rank 1", exit_status=status))
    with pytest.raises(JobError, match="the gradient was not finite") as caught:
        conclude(run, status)
    assert caught.value.exit_status == status
    assert run.status()["state"] == "failed"
    assert len(str(caught.value).splitlines()) <= 3


def test_a_run_that_ended_without_a_word_says_so(run: RunFolder):
    run.set_status("running")
    with pytest.raises(JobError, match="no rank could say why") as caught:
        conclude(run, 9)
    assert caught.value.exit_status == 1
    assert run.status()["state"] == "failed"


def test_a_run_that_is_over_without_being_complete_is_not_taken_for_done(run: RunFolder):
    run.set_status("running")
    with pytest.raises(JobError):
        conclude(run, 0)


def put_checkpoints(run: RunFolder) -> None:
    for name in ("step-00000007", "step-00000014", "step-00000021"):  # the last one was cut off
        (run.checkpoints / name).mkdir(parents=True)
        if name != "step-00000021":
            (run.checkpoints / name / "COMMITTED").touch()


@pytest.mark.parametrize(
    ("left", "says"),
    [
        (put_checkpoints, "the last whole checkpoint is of step 14"),
        (lambda run: run.shards.mkdir(), "finished rows are kept"),
        (lambda run: None, "there is no checkpoint yet"),
    ],
)
def test_a_run_that_was_stopped_before_it_could_save_says_what_it_goes_on_from(
    run: RunFolder, left: Callable[[RunFolder], object], says: str
):
    run.set_status("running")
    left(run)
    with pytest.raises(InterruptedRun) as caught:
        conclude(run, 75, asked=True)
    what, where, fix = str(caught.value).splitlines()
    assert what == f"stopped before it could save; {says}"
    assert (where, fix) == (f"  where: {run.path}", "  fix:   run the same command to go on")
    assert run.status()["state"] == "interrupted"


def test_a_run_that_was_done_before_it_could_be_stopped_is_done(run: RunFolder, capsys: pytest.CaptureFixture[str]):
    run.model.mkdir()
    run.set_status("complete")
    conclude(run, 75, asked=True)
    assert capsys.readouterr().err == f"done: {run.model}\n"
    assert run.status()["state"] == "complete"


def test_the_traceback_of_a_rank_comes_with_the_error_for_those_who_ask(run: RunFolder):
    failure.record(run.failures, 0, Failure("ValueError: no", trace="Traceback: line 3"))
    failure.record(run.failures, 1, Failure("connection closed by peer", peer=True))
    with pytest.raises(JobError) as caught:
        conclude(run, 1)
    followed = f"rank 1 on {pulse.host()} followed: connection closed by peer"
    assert caught.value.trace == f"Traceback: line 3\n{followed}"
    assert str(caught.value).startswith("ValueError: no\n")


def test_the_stack_of_a_rank_that_hung_is_said_before_the_error(run: RunFolder, capsys: pytest.CaptureFixture[str]):
    stack = 'Current thread 0x01 (most recent call first):\n  File "a.py", line 1 in f'
    failure.record(run.failures, 1, Failure("rank 1 has made no progress for 30 min", trace=stack, hung=True))
    with pytest.raises(JobError, match="no progress for 30 min"):
        conclude(run, 1)
    assert capsys.readouterr().err == f"the stack of rank 1, the innermost call first:\n{stack}\n"


Attempts = Callable[..., tuple[bool, int]]


@pytest.fixture(name="attempts")
def _attempts(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attempts:
    """Starts a job whose attempts end as they are told to: whether a stop came, and how many there were."""

    def begin(*ends: Failure | None, restarts: int = 0, asked: bool = False) -> tuple[bool, int]:
        loaded = load_job(tmp_path / "job.yaml", ["launch.processes=1", f"launch.max_restarts={restarts}"])
        left = list(ends)

        def attempt(*_: object, **__: object) -> local.Ended:
            failure.forget(run.failures)
            run.set_status("running")
            end = left.pop(0)
            if end is None:
                run.model.mkdir()
                run.set_status("complete")
                return local.Ended(0, asked)
            at = {**pulse.Doing(rank=1, host="node-2", step=len(left)).facts()}
            failure.record(run.failures, 1, end, at)
            return local.Ended(end.exit_status, asked)

        monkeypatch.setattr(start, "_attempt", attempt)
        monkeypatch.setattr(start, "_thriftier", lambda *_: loaded if len(left) == 1 else None)
        stop = start._attempts(loaded, loaded, None, tmp_path, fresh=False, started=0.0)  # type: ignore[arg-type]
        assert not left
        return stop, len(ends)

    return begin


KILLED = Failure("a process was killed by SIGKILL\n  where: rank 1 on node-2\n  fix:   memory", killed=True)
FULL = Failure("the host's memory is full\n  where: rank 1 on node-2, step 9\n  fix:   less", kind="MemoryFull")


def test_a_job_that_lost_a_rank_starts_again_and_says_so(attempts: Attempts, run: RunFolder, capsys: Any):
    assert attempts(KILLED, KILLED, None, restarts=2) == (False, 3)
    said = capsys.readouterr().err
    assert "killed by SIGKILL (rank 1 on node-2); restart 1 of 2, from the last checkpoint" in said
    assert "restart 2 of 2" in said
    first = failure.cause(run.failures / "attempt-1")
    assert first is not None and first["killed"]


def test_a_job_that_keeps_losing_ranks_fails_with_the_last_cause(attempts: Attempts, capsys: Any):
    with pytest.raises(JobError, match="killed by SIGKILL"):
        attempts(KILLED, KILLED, restarts=1)
    assert "not started again: launch.max_restarts=1 is used up" in capsys.readouterr().err


def test_without_restarts_the_first_failure_ends_the_job(attempts: Attempts):
    with pytest.raises(JobError, match="killed by SIGKILL"):
        attempts(KILLED)


def test_a_job_that_was_asked_to_stop_does_not_start_again(attempts: Attempts, capsys: Any):
    with pytest.raises(JobError, match="killed by SIGKILL"):
        attempts(KILLED, restarts=3, asked=True)
    assert "started again" not in capsys.readouterr().err


def test_memory_that_runs_out_again_names_the_strategy_that_would_fit(
    attempts: Attempts, monkeypatch: pytest.MonkeyPatch
):
    family = replace(start.FAMILIES[TrainingJob], roomier=lambda *_: "ZeRO 3, micro 1 would fit")
    monkeypatch.setattr(start, "family_of", lambda job: family)
    with pytest.raises(MemoryFull) as caught:
        attempts(FULL, FULL)  # the second time with the thriftier plan
    assert str(caught.value).splitlines() == [
        "the host's memory is full", "  where: rank 1 on node-2, step 9", "  fix:   ZeRO 3, micro 1 would fit",
    ]  # fmt: skip


def test_where_the_planner_knows_no_strategy_the_ranks_own_remedy_stands(
    attempts: Attempts, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(start, "family_of", lambda job: replace(start.FAMILIES[TrainingJob], roomier=lambda *_: None))
    with pytest.raises(MemoryFull, match="fix:   less"):
        attempts(FULL)


def test_a_complete_run_that_was_killed_while_it_sent_its_end_sends_it_when_it_is_asked_for_again(tmp_path: Path):
    from tests.checkpoints.test_commit import made

    run, mirror = tmp_path / "run", tmp_path / "mirror"
    made(run / "checkpoints", 4)
    (run / "metrics.jsonl").write_text("{}\n")
    (run / "checkpoints" / ".mirror.here").mkdir()
    job = SimpleNamespace(output=str(run), checkpoint=SimpleNamespace(mirror=str(mirror)))
    start._rest_to_mirror(cast(Any, job))
    assert (mirror / "step-00000004" / "COMMITTED").is_file() and (mirror / "run" / "metrics.jsonl").is_file()
    (mirror / "run" / "metrics.jsonl").unlink()
    shutil.rmtree(run / "checkpoints" / ".mirror.here", ignore_errors=True)
    start._rest_to_mirror(cast(Any, job))
    assert not (mirror / "run" / "metrics.jsonl").exists(), "nothing was left to send"
