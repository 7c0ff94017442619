"""How a run ends is what its folder and its exit status say together."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.making import write_job
from velocity.config.load import load_job
from velocity.config.resolved import render
from velocity.distributed import failure
from velocity.errors import InterruptedRun, JobError
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
    failure.record(run.failures, 1, "the gradient was not finite\n  where: rank 1", exit_status=status)
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


def test_a_run_that_was_stopped_before_it_could_save_goes_on_from_the_last_checkpoint(run: RunFolder):
    run.set_status("running")
    with pytest.raises(InterruptedRun, match="go on from the last checkpoint"):
        conclude(run, 75)
    assert run.status()["state"] == "interrupted"


def test_the_traceback_of_a_rank_comes_with_the_error_for_those_who_ask(run: RunFolder):
    failure.record(run.failures, 0, "ValueError: no", trace="Traceback: line 3")
    with pytest.raises(JobError) as caught:
        conclude(run, 1)
    assert caught.value.trace == "Traceback: line 3"
