"""The target local, detached: `velocity run` on this machine, without a terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.commands import processes_naming, step_lines
from tests.making import job_data, write_job
from tests.running import prepare_folder
from velocity.config.training import TrainingJob
from velocity.errors import UserError
from velocity.launch.launcher import Submission
from velocity.launch.supervised.here import Here
from velocity.launch.supervised.launcher import SupervisedLauncher
from velocity.runs.folder import RunFolder

PATIENCE_SECONDS = 240


def submission(folder: Path, **launch: Any) -> Submission:
    job = TrainingJob.model_validate({**job_data(folder), "launch": launch})
    return Submission("sft-1", folder / "jobs" / "sft-1", [job], {"1-job.yaml": "task: sft\n"}, ["seed=1"])


def test_the_copied_job_file_is_run_here_with_the_overrides_and_the_launch_section_as_loaded(tmp_path: Path):
    [plan] = map(json.loads, SupervisedLauncher(Here()).render(submission(tmp_path, processes=2)).values())
    [node] = plan["nodes"]
    assert plan["files"] == [], "they lie here already"
    assert node["command"] == [sys.executable, "-m", "velocity.launch.supervised.host"]
    assert node["order"]["folder"] == f"{tmp_path}/jobs/sft-1"
    assert node["order"]["command"] == [
        sys.executable, "-m", "velocity", "run", f"{tmp_path}/jobs/sft-1/1-job.yaml", "seed=1",
        'launch={"kind": "local", "processes": 2}',
    ]  # fmt: skip


def test_a_run_folder_that_another_process_writes_is_refused_before_anything_starts(tmp_path: Path):
    Here().check(submission(tmp_path))
    with RunFolder(tmp_path / "run").owned(), pytest.raises(UserError, match="held by another process"):
        Here().check(submission(tmp_path))


def run_in(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "velocity", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE_SECONDS)


def sent_and_at_work(folder: Path) -> str:
    """The name of the job, which was sent and has done some more steps."""
    before = len(step_lines(folder / "run"))
    done = run_in(folder, "run", "job.yaml", "--detach")
    assert done.returncode == 0, done.stderr
    name = done.stderr.split()[1]
    until(lambda: len(step_lines(folder / "run")) >= before + 3)
    return name


def until(done: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_a_detached_job_can_be_cancelled_goes_on_and_does_not_outlive_its_supervisor(tmp_path: Path):
    prepare_folder(tmp_path)
    write_job(tmp_path / "job.yaml", duration={"steps": 20_000}, launch={"processes": 2})
    name = sent_and_at_work(tmp_path)
    assert run_in(tmp_path, "cancel", name).returncode == 0
    cancelled = run_in(tmp_path, "logs", name)
    assert cancelled.returncode == 75, cancelled.stderr
    assert "error: stopped after step" in cancelled.stderr
    assert processes_naming(str(tmp_path)) == []

    name = sent_and_at_work(tmp_path)
    [supervisor] = processes_naming(f"velocity.launch.supervised.supervisor {tmp_path}")
    os.kill(supervisor, signal.SIGKILL)
    died = run_in(tmp_path, "logs", name)
    assert died.returncode == 1 and "the process that watched it was killed" in died.stderr
    until(lambda: not processes_naming(str(tmp_path)))
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "interrupted", "it saved"

    steps = len(step_lines(tmp_path / "run")) + 2
    assert run_in(tmp_path, "run", "job.yaml", f"duration.steps={steps}").returncode == 0
    assert [line["step"] for line in step_lines(tmp_path / "run")] == list(range(1, steps + 1))
