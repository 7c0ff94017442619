"""What every target shares: the command of a node, and what exit statuses mean."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.making import job_data
from velocity.config.training import TrainingJob
from velocity.launch.launcher import OVER, JobStatus, Submission, shell, state_of

FILES = {"1-sft.yaml": "task: sft\n", "2-dpo.yaml": "task: preference\n"}


def submission(**launch: object) -> Submission:
    job = TrainingJob.model_validate({**job_data(Path("/data")), "launch": launch})
    return Submission("sft-1", Path("/jobs/sft-1"), [job, job], FILES, ["seed=1", "batch.rows=8"])


def test_a_node_runs_all_job_files_in_order_with_the_overrides():
    assert submission(kind="slurm", nodes=2).command("/venv/python") == [
        "/venv/python", "-m", "velocity", "node", "slurm", "/jobs/sft-1/1-sft.yaml", "/jobs/sft-1/2-dpo.yaml",
        "seed=1", "batch.rows=8",
    ]  # fmt: skip


def test_a_node_finds_them_where_its_target_put_them():
    command = submission(kind="ssh", hosts="a").command("python", "/opt/ml/input/data/job")
    assert command[3:6] == ["node", "ssh", "/opt/ml/input/data/job/1-sft.yaml"]


@pytest.mark.parametrize(
    ("exit_status", "state"), [(0, "complete"), (75, "interrupted"), (1, "failed"), (2, "failed"), (137, "failed")]
)
def test_an_exit_status_says_how_a_job_ended(exit_status: int, state: str):
    assert state_of(exit_status) == state
    assert state in OVER


@pytest.mark.parametrize("state", ["waiting", "running", "unknown"])
def test_what_may_still_change_is_not_over(state: str):
    assert not JobStatus(state).over  # type: ignore[arg-type]


def test_a_command_is_a_line_for_a_shell():
    command = ["python", "it's", 'launch={"kind": "ssh"}', "$HOME"]
    assert shlex.split(shell(command)) == command
