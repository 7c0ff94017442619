"""A job on two hosts over ssh: its losses, its failures by name, and that nothing of it outlives launcher or host."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.commands import losses, step_lines, velocity
from tests.faults.test_failures import break_a_record
from tests.laboratory import Laboratory, laboratory
from tests.making import write_job
from tests.running import TOLERANCE, prepare_folder
from velocity.checkpoints.commit import committed, step_of

pytestmark = pytest.mark.slow
STEPS = 12
SEED = 1  # of the order in which the second rank is the one that reads the broken record
MANY = 20_000  # no run gets to the end of so many
PATIENCE_SECONDS = 200.0
PLANTED = "planted-secret-of-this-test"


@dataclass
class Project:
    """A folder with model and data, from whose launcher's place, the laboratory's hub, jobs are sent to two hosts."""

    lab: Laboratory
    folder: Path

    def job(self, name: str, steps: int, **sections: Any) -> Path:
        """A job file for both hosts, a rank each."""
        lab = self.lab
        values: dict[str, Any] = {
            "output": name,
            "duration": {"steps": steps},
            "checkpoint": {"every": 1000},
            "strategy": {"zero": 2, "precision": "fp32"},
            "batch": {"rows": 8, "micro": 2},
            "launch": {"kind": "ssh", "hosts": lab.names, "config": str(lab.config), "python": sys.executable},
        }
        return write_job(self.folder / f"{name}.yaml", **{**values, **sections})

    def velocity(self, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        """The command ran in the folder, and this is how it ended."""
        return self.lab.run(self.lab.hub, sys.executable, "-m", "velocity", *arguments, cwd=self.folder, **options)

    def sent(self, job: Path, *overrides: str) -> str:
        """The name of the job, which was sent."""
        done = self.velocity("run", job.name, *overrides, "--detach")
        found = re.search(r"^submitted (\S+) to ssh: process \d+$", done.stderr, re.MULTILINE)
        assert done.returncode == 0 and found, done.stderr
        return found[1]

    def left_with_ctrl_c(self, job: Path, output: str) -> subprocess.CompletedProcess[str]:
        """The job was followed for some steps, until Ctrl-C."""
        command = self.lab.command(self.lab.hub, sys.executable, "-m", "velocity", "run", job.name)
        with subprocess.Popen(command, cwd=self.folder, stderr=subprocess.PIPE, text=True) as process:
            self.wait_for_steps(output)
            process.send_signal(signal.SIGINT)
            said = process.communicate(timeout=PATIENCE_SECONDS)[1]
        return subprocess.CompletedProcess(command, process.returncode, "", said)

    def wait_for_steps(self, name: str, more: int = 3) -> None:
        """So many more steps are done."""
        before = len(step_lines(self.folder / name))
        self.wait_until(lambda: len(step_lines(self.folder / name)) >= before + more, self.said)

    def wait_until(self, done: Callable[[], object], shown: Callable[[], str] = str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not done():
            assert time.monotonic() < deadline, shown()
            time.sleep(0.1)

    def said(self) -> str:
        """The log of the newest job."""
        newest = max((self.folder / ".velocity" / "jobs").iterdir(), key=lambda folder: folder.stat().st_mtime)
        return (newest / "log.txt").read_text()

    def status(self, name: str) -> dict[str, Any]:
        """What `velocity jobs` says of it."""
        [row] = [row for row in json.loads(self.velocity("jobs", "--json").stdout) if row["name"] == name]
        return dict(row)

    def wait_until_nothing_runs(self) -> None:
        """No process of a job is left on any host, nor where it was sent from."""
        self.wait_until(lambda: not any(self.running().values()), lambda: str(self.running()))

    def running(self) -> dict[str, list[str]]:
        return {name: self.lab.jobs(name) for name in [*self.lab.names, self.lab.hub]}

    def supervisor(self, name: str) -> int:
        return int(json.loads((self.folder / ".velocity" / "jobs" / name / "supervisor.json").read_text())["pid"])


@pytest.fixture(name="project", scope="module")
def _project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("ssh")
    with laboratory(folder / "lab") as lab:
        prepare_folder(folder / "project")
        yield Project(lab, folder / "project")


@pytest.fixture(name="straight", scope="module")
def _straight(project: Project) -> list[tuple[int, float, float]]:
    """The losses of the same job with two ranks on one machine."""
    job = project.job("straight", STEPS, launch={"processes": 2}, output=str(project.folder / "straight"))
    done = velocity("run", job)
    assert done.returncode == 0, done.stderr
    return losses(project.folder / "straight")


def test_two_hosts_make_the_losses_of_one_machine_and_leave_nothing_but_the_run_and_no_secret(
    project: Project, straight: list[tuple[int, float, float]]
):
    done = project.velocity("run", project.job("two", STEPS).name, env={**os.environ, "HF_TOKEN": PLANTED})
    assert done.returncode == 0, done.stderr
    assert "on 2 nodes" in done.stderr and done.stderr.splitlines()[-1].startswith("done: two-")
    for ours, theirs in zip(losses(project.folder / "two"), straight, strict=True):
        assert ours == pytest.approx(theirs, rel=TOLERANCE, abs=TOLERANCE)
    assert not any(project.running().values())
    assert not (project.folder / ".velocity" / "nodes").exists()
    files = [file for file in project.folder.rglob("*") if file.is_file()]
    assert not [file for file in files if PLANTED.encode() in file.read_bytes()]


@pytest.fixture(name="broken", scope="module")
def _broken(project: Project) -> tuple[Project, subprocess.CompletedProcess[str]]:
    """A job whose data holds a token that no model has, in a record that the second rank reads."""
    broken = Project(project.lab, prepare_folder(project.folder.parent / "broken"))
    break_a_record(broken.folder)
    return broken, broken.velocity("run", broken.job("run", STEPS, seed=SEED).name)


def test_a_rank_that_fails_on_the_second_host_is_named_with_its_host_by_command_logs_and_status(
    broken: tuple[Project, subprocess.CompletedProcess[str]],
):
    project, done = broken
    assert done.returncode == 1, done.stderr
    what, where, _ = done.stderr.splitlines()[-3:]
    assert what.startswith("error: IndexError: "), done.stderr
    assert re.match(rf"  where: rank 1 on {project.lab.names[1]}, step \d+, records ", where)
    assert "Traceback" not in done.stderr
    [row] = json.loads(project.velocity("jobs", "--json").stdout)
    assert (row["state"], row["exit_status"]) == ("failed", 1)
    assert row["why"].splitlines()[:2] == [what.removeprefix("error: "), where]
    logs = project.velocity("logs", "run")
    assert logs.returncode == 1
    assert logs.stderr.splitlines()[-3:-1] == [what, where]
    assert not any(project.running().values())


@dataclass
class Disturbed:
    """A job that was started three times; what was seen each time."""

    project: Project
    after_the_supervisors_death: dict[str, Any]
    left: subprocess.CompletedProcess[str]
    cancelled: subprocess.CompletedProcess[str]
    cancelled_step: int
    saved: int
    finished: subprocess.CompletedProcess[str]


@pytest.fixture(name="disturbed", scope="module")
def _disturbed(project: Project) -> Disturbed:
    """Its supervisor was killed, then its command was left and it was cancelled, then it went on to its end."""
    job = project.job("disturbed", MANY)
    name = project.sent(job)
    project.wait_for_steps("disturbed")
    os.kill(project.supervisor(name), signal.SIGKILL)
    project.wait_until_nothing_runs()
    died = project.status(name)

    left = project.left_with_ctrl_c(job, "disturbed")
    name = left.stderr.split()[1]
    project.wait_for_steps("disturbed")
    assert project.velocity("cancel", name).stderr == f"asked {name} to stop\n"
    cancelled = project.velocity("logs", name)
    project.wait_until_nothing_runs()
    step = int(step_lines(project.folder / "disturbed")[-1]["step"])
    saved = max(map(step_of, committed(project.folder / "disturbed" / "checkpoints")))
    finished = project.velocity("run", job.name, f"duration.steps={step + STEPS}")
    return Disturbed(project, died, left, cancelled, step, saved, finished)


def test_when_the_supervisor_is_killed_no_process_is_left_on_any_host_and_the_status_says_so(disturbed: Disturbed):
    status = disturbed.after_the_supervisors_death
    assert (status["state"], status["exit_status"]) == ("failed", 1)
    assert status["why"].startswith("the process that watched it was killed\n")


def test_ctrl_c_leaves_the_job_alone_and_says_how_to_come_back(disturbed: Disturbed):
    left = disturbed.left
    assert left.returncode == 130
    name = left.stderr.split()[1]
    last = f"{name} goes on; velocity logs {name} follows it, velocity cancel {name} ends it"
    assert left.stderr.splitlines()[-1] == last
    assert any(line.startswith("step ") for line in left.stderr.splitlines()), "it was followed"


def test_a_cancelled_job_saves_and_its_logs_exit_with_75(disturbed: Disturbed):
    cancelled = disturbed.cancelled
    assert cancelled.returncode == 75, cancelled.stderr
    assert f"stopped after step {disturbed.cancelled_step}, and saved in" in cancelled.stderr
    assert "  fix:   run the same command to go on" in cancelled.stderr.splitlines()
    assert disturbed.saved == disturbed.cancelled_step


def test_the_same_command_goes_on_after_a_killed_supervisor_and_after_a_cancel(
    disturbed: Disturbed, straight: list[tuple[int, float, float]]
):
    assert disturbed.finished.returncode == 0, disturbed.finished.stderr
    ours = losses(disturbed.project.folder / "disturbed")
    assert [step for step, *_ in ours] == list(range(1, disturbed.cancelled_step + STEPS + 1))
    for one, other in zip(ours, straight, strict=False):
        assert one == pytest.approx(other, rel=TOLERANCE, abs=TOLERANCE)


@pytest.mark.parametrize("place", [0, 1], ids=["first", "second"])
def test_a_host_that_dies_ends_the_job_on_the_other_one_and_is_named(project: Project, place: int):
    output = f"host-{place}"
    job, dies = project.job(output, MANY), project.lab.names[place]
    name = project.sent(job)
    project.wait_for_steps(output)
    project.lab.kill(dies)
    try:
        ended = project.velocity("logs", name)
        project.wait_until_nothing_runs()
    finally:
        project.lab.boot(dies)
    assert ended.returncode == 1, ended.stderr
    error = next(line for line in ended.stderr.splitlines()[::-1] if line.startswith("error: "))
    assert dies in error, ended.stderr
    status = project.status(name)
    assert status["state"] == "failed" and dies in status["why"].splitlines()[0]


def test_a_host_whose_cable_is_pulled_is_named_and_ends_its_part_by_itself(project: Project):
    job, lost = project.job("cable", MANY), project.lab.names[1]
    name = project.sent(job)
    project.wait_for_steps("cable")
    project.lab.cut(lost)
    try:
        ended = project.velocity("logs", name)
        project.wait_until_nothing_runs()
    finally:
        project.lab.mend(lost)
    assert ended.returncode == 1, ended.stderr
    assert lost in project.status(name)["why"].splitlines()[0]


def test_hosts_without_a_common_disk_are_sent_the_job_and_have_the_same_losses(
    project: Project, straight: list[tuple[int, float, float]]
):
    lab, there = project.lab, project.folder.parent / "there"
    disks = {name: project.folder.parent / f"disk-of-{name}" for name in lab.names}
    launch = {"kind": "ssh", "hosts": lab.names, "config": str(lab.config), "folder": str(there)}
    mirror = project.folder.parent / "mirror"
    job = project.job("apart", STEPS, launch=launch, checkpoint={"every": 1000, "mirror": str(mirror)})
    for name, disk in disks.items():
        disk.mkdir()
        lab.mounts[name] = {disk: there}
        lab.kill(name)
        lab.boot(name)
    try:
        done = project.velocity("run", job.name)
    finally:
        lab.mounts.clear()
        for name in lab.names:
            lab.kill(name)
            lab.boot(name)
    assert done.returncode == 0, done.stderr
    for ours, theirs in zip(losses(disks[lab.names[0]] / "apart"), straight, strict=True):
        assert ours == pytest.approx(theirs, rel=TOLERANCE, abs=TOLERANCE)
    assert (mirror / "run" / "metrics.jsonl").is_file()
    assert not any((disk / ".velocity" / "nodes").exists() for disk in disks.values())
    assert not (project.folder / "apart").exists()
