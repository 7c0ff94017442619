"""A run folder is opened with its job, of whatever task, and with the state that it is in."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.making import generate_data, write_job
from velocity.config.generate import GenerateJob
from velocity.config.job import Job, LoadedJob
from velocity.config.load import load_job
from velocity.config.resolved import render
from velocity.config.training import TrainingJob
from velocity.errors import UserError
from velocity.runs.folder import RunFolder
from velocity.runs.opened import open_run


def made(path: Path, job: Job) -> RunFolder:
    run = RunFolder(path)
    run.path.mkdir()
    run.job.write_text(render(LoadedJob(job, {}, path)), "utf-8")
    return run


@pytest.mark.parametrize("kind", [TrainingJob, GenerateJob])
def test_the_job_comes_back_in_its_own_class(tmp_path: Path, kind: type[Job]):
    training = load_job(write_job(tmp_path / "job.yaml")).job
    job = training if kind is TrainingJob else GenerateJob.model_validate(generate_data(tmp_path))
    run = made(tmp_path / "run", job)
    assert open_run(run.path)[1] == job
    assert open_run(run.path)[2] == {"state": "new"}


def test_a_run_that_goes_on_is_running_while_a_process_holds_it_and_was_killed_after(tmp_path: Path):
    run = made(tmp_path / "run", GenerateJob.model_validate(generate_data(tmp_path)))
    run.begin("inputs")
    with run.owned():
        assert open_run(run.path)[2]["state"] == "running"
    assert open_run(run.path)[2]["state"] == "killed"


def test_another_folder_is_no_run(tmp_path: Path):
    with pytest.raises(UserError, match="not a run folder"):
        open_run(tmp_path)
