"""What Slurm would refuse, or never start, is refused beforehand, by the field that it is about."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.commands import velocity
from tests.launch.slurm.submissions import submission
from tests.slurm_jobs import PATIENCE_SECONDS, Job, ended
from tests.slurm_laboratory import wait_until
from velocity.errors import UserError
from velocity.launch.slurm.says import _check_partition, refused

PARTITIONS = {
    "cpu": {"State": "UP", "Default": "YES", "MaxNodes": "UNLIMITED", "TotalNodes": "9", "MaxTime": "UNLIMITED"},
    "gpu": {"State": "UP", "Default": "NO", "MaxNodes": "4", "TotalNodes": "8", "MaxTime": "1-00:00:00"},
    "brief": {"State": "UP", "TotalNodes": "8", "MaxTime": "1-00:00:00", "DefaultTime": "00:05:00"},
    "free": {"State": "UP", "TotalNodes": "8", "MaxTime": "00:30:00", "QoS": "large"},
    "old": {"State": "DRAIN", "Default": "NO", "MaxNodes": "4", "TotalNodes": "8", "MaxTime": "1-00:00:00"},
}


@pytest.mark.parametrize(
    ("launch", "where"),
    [
        ({"nodes": 9, "time": "30d"}, None),
        ({"nodes": 10}, "launch.nodes"),
        ({"partition": "gpu", "nodes": 4, "time": "24h"}, None),
        ({"partition": "gpu", "nodes": 5}, "launch.nodes"),
        ({"partition": "gpu", "time": "25h"}, "launch.time"),
        ({"partition": "gpu", "time": "unlimited"}, "launch.time"),
        ({"partition": "gpu", "nodes": 5, "time": "25h", "qos": "large"}, None),
        ({"partition": "free", "nodes": 9, "time": "25h"}, None),
        ({"partition": "brief", "time": "1h"}, None),
        ({"partition": "brief"}, "launch.time"),
        ({"partition": "brief", "warning_seconds": 60}, None),
        ({"partition": "old"}, "launch.partition"),
        ({"partition": "none"}, "launch.partition"),
    ],
)
def test_what_a_partition_never_starts_is_refused_by_its_field(
    tmp_path: Path, launch: dict[str, Any], where: str | None
):
    asked = submission(tmp_path, launch).launch
    if where is None:
        _check_partition(asked, PARTITIONS)
        return
    with pytest.raises(UserError) as caught:
        _check_partition(asked, PARTITIONS)
    assert caught.value.problems[0].where == where


@pytest.mark.parametrize(
    ("said", "where"),
    [
        ("sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
         "launch.account"),
        ("allocation failure: Invalid qos specification", "launch.qos"),
        ("allocation failure: Requested time limit is invalid (missing or exceeds some limit)", "launch.time"),
        ("sbatch: error: invalid partition specified: x\nallocation failure: Invalid partition name specified",
         "launch.partition"),
        ("sbatch: unrecognized option '--foo'\nTry \"sbatch --help\" for more information", "launch.options"),
        ("allocation failure: Requested reservation is invalid", "launch.options"),
        ("allocation failure: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
         "launch"),
        ("", "launch"),
    ],
)  # fmt: skip
def test_a_refusal_of_slurms_names_the_field_and_its_last_line(said: str, where: str):
    (problem,) = refused(said).problems
    assert problem.where == where
    assert len(str(problem).splitlines()) == 3
    assert not re.search("error:|allocation failure|Try", problem.what)


@pytest.mark.parametrize(
    ("launch", "what", "where"),
    [
        ({"partition": "gpu"}, "Slurm has no partition gpu", "launch.partition"),
        ({"partition": "closed"}, "the partition closed is DOWN", "launch.partition"),
        ({"partition": "small"}, "launch.nodes=2, but the partition small gives a job 1", "launch.nodes"),
        ({"nodes": 3}, "launch.nodes=3, but the partition main gives a job 2", "launch.nodes"),
        ({"time": "2d"}, "launch.time=2d, but the partition main gives a job 1-00:00:00", "launch.time"),
        ({"time": "unlimited"}, "launch.time=unlimited, but", "launch.time"),
        ({"gpus_per_node": 8}, "Slurm refuses the job: Invalid generic resource", "launch.gpus_per_node"),
        ({"constraint": "a100"}, "Slurm refuses the job: Invalid feature", "launch.constraint"),
        ({"memory": "lots"}, "Slurm refuses the job: Invalid --mem", "launch.memory"),
        ({"cpus_per_node": 64}, "Slurm refuses the job: Requested node configuration", "launch"),
        ({"options": ["--nonsense=1"]}, "Slurm refuses the job: unrecognized option '--nonsense=1'", "launch.options"),
    ],
)
def test_what_slurm_cannot_start_is_refused_in_one_error_and_nothing_is_sent(
    job: Job, launch: dict[str, Any], what: str, where: str
):
    job.does("verdict 0", **launch)
    refused = job.run()
    assert refused.returncode == 2
    first, second, third = refused.stderr.splitlines()
    assert first.startswith(f"error: {what}")
    assert second == f"  where: {where}"
    assert third.startswith("  fix:   ")
    assert not (job.folder / ".velocity").exists()
    assert not job.cluster.slurm("squeue", "--noheader").stdout


@pytest.mark.slow
def test_a_node_that_is_down_makes_no_job_wrong_which_waits_for_it(job: Job):
    node = f"NodeName={job.cluster.names[1]}"
    job.does("verdict 0")
    job.cluster.slurm("scontrol", "update", node, "State=DRAIN", "Reason=test")
    try:
        waiting = job.start()
        wait_until(lambda: any(Path(".velocity", "jobs").glob("*/submitted.json")), "it is sent", PATIENCE_SECONDS)
        assert job.listed()["state"] == "waiting"
    finally:
        job.cluster.slurm("scontrol", "update", node, "State=RESUME")
    status, said = ended(waiting)
    assert (status, f"may when what is down is back ({job.cluster.names[1]})" in said) == (0, True)


def test_where_slurm_is_not_installed_that_is_said(job: Job, monkeypatch: pytest.MonkeyPatch):
    job.does("verdict 0")
    monkeypatch.setenv("PATH", "/nowhere")
    refused = velocity("run", job.file)
    assert (refused.returncode, refused.stderr.splitlines()[0]) == (2, "error: there is no sbatch here")


def test_where_slurm_does_not_answer_that_is_said(job: Job, monkeypatch: pytest.MonkeyPatch):
    job.does("verdict 0")
    (job.folder / "slurm.conf").write_text("nonsense\n")
    monkeypatch.setenv("SLURM_CONF", str(job.folder / "slurm.conf"))
    refused = velocity("run", job.file)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: Slurm does not answer")
