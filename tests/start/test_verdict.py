"""How a run ends is what its folder and its exit status say together."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from velocity.distributed import failure, pulse
from velocity.distributed.failure import Failure
from velocity.errors import InterruptedRun, JobError
from velocity.runs.folder import RunFolder
from velocity.start.verdict import conclude


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
