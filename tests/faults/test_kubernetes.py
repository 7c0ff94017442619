"""A job on Kubernetes: the rendered command on two hosts, by the real kubectl; its losses, its failures."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.commands import losses, step_lines, velocity
from tests.laboratory import Laboratory, laboratory
from tests.launch import cluster as small
from tests.launch.cluster import Cluster
from tests.launch.kubernetes_jobs import IMAGE
from tests.launch.test_kubernetes import wait_for
from tests.making import write_job, write_jsonl
from tests.running import TOLERANCE, prepare_folder
from velocity.config.load import load_job
from velocity.launch import command
from velocity.launch import submitted as registry
from velocity.launch.kubernetes import KubernetesLauncher

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed"),
]
STEPS = 12
MANY = 20_000
PATIENCE_SECONDS = 240.0


@dataclass
class Project:
    """A folder that is the claim, a cluster whose two machines are hosts of the laboratory, and kubectl aimed at it."""

    folder: Path
    lab: Laboratory
    cluster: Cluster
    own_disks: bool = False

    def job(self, name: str, *, launch: Mapping[str, Any] | None = None, **sections: Any) -> Path:
        """A job file for two pods, a rank each; without a claim each pod has a disk of its own."""
        where = {"kind": "kubernetes", "nodes": 2, "image": IMAGE, "claim": "files", **(launch or {})}
        values = {"output": name, "duration": {"steps": STEPS}, "checkpoint": {"every": 4, "keep": 2}, **sections}
        data = values.pop("data", {"train": "train.jsonl", "cache": "cache"})
        return write_job(
            self.folder / f"{name}.yaml", **{"model": "model", **values}, data=data, launch=where,
            strategy={"zero": 2, "precision": "fp32"}, batch={"rows": 8, "micro": 2},
        )  # fmt: skip

    def start_pod(
        self, index: int, command: Sequence[str], variables: Mapping[str, str], folder: Path
    ) -> subprocess.Popen[str]:
        """What the container runtime would: the container's own command and variables, on that host."""
        lab, host = self.lab, self.lab.names[index]
        for name in lab.names:  # what the headless Service does for the names
            known = Path("/etc/netns", name, "hosts")
            service = f"{variables['VELOCITY_JOB']}-{{}}.{variables['VELOCITY_SERVICE']}"
            lines = [f"{lab.addresses[other]} {service.format(number)}" for number, other in enumerate(lab.names)]
            if lines[0] not in known.read_text():
                known.write_text(known.read_text() + "\n".join(lines) + "\n")
        (folder / "home").mkdir()
        python, *arguments = command
        assert python == "python"
        at = folder / "home" if self.own_disks else self.folder
        inherited = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH") if name in os.environ}
        with (folder / "log").open("w") as log:
            return subprocess.Popen(
                lab.command(host, sys.executable, *arguments), env={**inherited, **variables}, cwd=at,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip

    def pods(self, job: str) -> list[dict[str, Any]]:
        """Its pods, the oldest first."""
        return [pod for pod in self.cluster.listed("pods") if pod["metadata"]["labels"]["job-name"] == job]


def project_in(folder: Path) -> Iterator[Project]:
    (folder / "files").mkdir(parents=True, exist_ok=True)
    prepare_folder(folder)
    with laboratory(folder / "lab") as lab:
        project = Project(folder, lab, None)  # type: ignore[arg-type]
        with small.running(folder / "cluster", project.start_pod) as cluster:
            project.cluster = cluster
            claim = {"accessModes": ["ReadWriteMany"]}
            cluster.add("persistentvolumeclaims", {"kind": "PersistentVolumeClaim", "apiVersion": "v1",
                                                   "metadata": {"name": "files"}, "spec": claim})  # fmt: skip
            before = Path.cwd(), os.environ.get("KUBECONFIG")
            os.chdir(folder)
            os.environ["KUBECONFIG"] = str(folder / "cluster" / "kubeconfig")
            try:
                yield project
            finally:
                os.chdir(before[0])
                os.environ.pop("KUBECONFIG")
                if before[1] is not None:
                    os.environ["KUBECONFIG"] = before[1]


@pytest.fixture(name="project", scope="module")
def _project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    yield from project_in(tmp_path_factory.mktemp("claim"))


@pytest.fixture(name="expected", scope="module")
def _expected(project: Project) -> list[tuple[int, float, float]]:
    """Of the same job on one machine."""
    job = project.job("one")
    done = velocity("run", job, "--on", "local", "launch.processes=2")
    assert done.returncode == 0, done.stderr
    return losses(project.folder / "one")


def assert_same(run: Path, expected: list[tuple[int, float, float]]) -> None:
    found = losses(run)
    assert [step for step, *_ in found] == [step for step, *_ in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=TOLERANCE)


def test_two_pods_have_the_losses_of_one_machine(project: Project, expected: list[tuple[int, float, float]]):
    done = velocity("run", project.job("two"), "--on", "kubernetes")
    assert done.returncode == 0, done.stderr
    assert_same(project.folder / "two", expected)
    assert "submitted two-" in done.stderr and "step 12/12" in done.stderr and "done: two-" in done.stderr


def test_a_drained_machine_has_all_pods_save_and_go_on(project: Project, expected: list[tuple[int, float, float]]):
    job = project.job("drained", duration={"steps": MANY})
    sent = command.submit(command.make_submission([load_job(job)], [f"duration.steps={MANY}"]))
    wait_for(lambda: len(step_lines(project.folder / "drained")) > 2, PATIENCE_SECONDS)
    first = project.pods(sent.name)
    project.cluster.processes[first[1]["metadata"]["name"]].send_signal(signal.SIGTERM)
    wait_for(lambda: len(project.pods(sent.name)) == 4, PATIENCE_SECONDS)
    codes = [pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] for pod in first]
    assert codes == [75, 75]
    reached = len(step_lines(project.folder / "drained"))
    wait_for(lambda: len(step_lines(project.folder / "drained")) > reached + 2, PATIENCE_SECONDS)
    command.cancel(sent.name)
    wait_for(lambda: command.status(sent).state == "cancelled", PATIENCE_SECONDS)
    assert [step for step, *_ in losses(project.folder / "drained")] == list(
        range(1, len(losses(project.folder / "drained")) + 1)
    )
    for (_, ours, _), (_, theirs, _) in zip(losses(project.folder / "drained"), expected, strict=False):
        assert ours == pytest.approx(theirs, abs=TOLERANCE)


def test_a_rank_that_is_killed_is_named_with_its_host_wherever_one_looks(project: Project):
    job = project.job("killed", duration={"steps": MANY})
    sent = command.submit(command.make_submission([load_job(job)], []))
    wait_for(lambda: len(step_lines(project.folder / "killed")) > 2, PATIENCE_SECONDS)
    (rank,) = [pid for pid in project.lab.processes(project.lab.names[1]) if "velocity.training.run" in words(pid)
               and "distributed.node" not in words(pid)]  # fmt: skip
    os.kill(rank, signal.SIGKILL)
    done = velocity("logs", sent.name)
    where = f"where: rank 1 on {sent.name}-1.{sent.name}"
    assert done.returncode == 1
    assert "a process was killed by SIGKILL" in done.stderr and where in done.stderr
    listed = json.loads(velocity("jobs", "--json").stdout)
    (row,) = [row for row in listed if row["name"] == sent.name]
    assert (row["state"], row["exit_status"]) == ("failed", 1)
    assert row["why"].startswith("a process was killed by SIGKILL") and where in row["why"]


def words(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def test_wrong_data_fails_the_job_with_2_and_is_not_tried_again(project: Project):
    write_jsonl(project.folder / "broken.jsonl", [{"no": "field that is known"}])
    job = project.job("wrong", data={"train": "broken.jsonl", "cache": "cache"}, launch={"max_restarts": 2})
    done = velocity("run", job, "--on", "kubernetes")
    assert done.returncode == 2, done.stderr
    assert "broken.jsonl" in done.stderr.splitlines()[-2]
    name = next(one.name for one in registry.all_submitted() if one.name.startswith("wrong"))
    assert len(project.pods(name)) <= 2


def test_pods_without_a_common_disk_go_on_from_the_mirror(project: Project, expected: list[tuple[int, float, float]]):
    """Each attempt's disks are new. The mirror is a folder here, which `check` refuses: it is left out."""
    mirror, train = project.folder / "mirror", project.folder / "train.jsonl"
    job = project.job(
        "mirrored",
        model=str(project.folder / "model"),
        data={"train": str(train), "cache": "~/.cache/velocity"},
        checkpoint={"every": 4, "mirror": str(mirror)},
        launch={"claim": None},
    )
    project.own_disks = True
    try:
        submission = command.make_submission([load_job(job)], [])
        registry.write_files(submission.folder, {**submission.files, **KubernetesLauncher().render(submission)})
        sent = KubernetesLauncher().submit(submission)
        wait_for(lambda: any(mirror.glob("step-*/COMMITTED")), PATIENCE_SECONDS)
        project.cluster.processes[project.pods(sent.name)[0]["metadata"]["name"]].send_signal(signal.SIGTERM)
        wait_for(lambda: command.status(sent).over, PATIENCE_SECONDS)
    finally:
        project.own_disks = False
    assert command.status(sent).state == "complete", command.status(sent)
    assert_same(mirror / "run", expected)
