"""A job on Kubernetes: the rendered command on two hosts, by the real kubectl; its losses, its failures."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.commands import losses, step_lines, velocity
from tests.kubernetes_laboratory import CLAIM, Pods, kubernetes
from tests.launch.kubernetes.jobs import IMAGE
from tests.launch.kubernetes.test_launcher import wait_for
from tests.making import write_job, write_jsonl
from tests.running import TOLERANCE, prepare_folder
from velocity.config.load import load_job
from velocity.launch import command
from velocity.launch import submitted as registry
from velocity.launch.kubernetes.launcher import KubernetesLauncher

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed"),
]
STEPS = 12
MANY = 20_000
PATIENCE_SECONDS = 240.0


def job_of(pods: Pods, name: str, *, launch: Mapping[str, Any] | None = None, **sections: Any) -> Path:
    """A job file for two pods, a rank each; without a claim each pod has a disk of its own."""
    where = {"kind": "kubernetes", "nodes": 2, "image": IMAGE, "claim": CLAIM, **(launch or {})}
    values = {"output": name, "duration": {"steps": STEPS}, "checkpoint": {"every": 4, "keep": 2}, **sections}
    data = values.pop("data", {"train": "train.jsonl", "cache": "cache"})
    return write_job(
        pods.folder / f"{name}.yaml", **{"model": "model", **values}, data=data, launch=where,
        strategy={"zero": 2, "precision": "fp32"}, batch={"rows": 8, "micro": 2},
    )  # fmt: skip


@pytest.fixture(name="pods", scope="module")
def _pods(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pods]:
    folder = prepare_folder(tmp_path_factory.mktemp("claim"))
    with kubernetes(folder) as pods:
        yield pods


@pytest.fixture(name="expected", scope="module")
def _expected(pods: Pods) -> list[tuple[int, float, float]]:
    """Of the same job on one machine."""
    job = job_of(pods, "one")
    done = velocity("run", job, "--on", "local", "launch.processes=2")
    assert done.returncode == 0, done.stderr
    return losses(pods.folder / "one")


def assert_same(run: Path, expected: list[tuple[int, float, float]]) -> None:
    found = losses(run)
    assert [step for step, *_ in found] == [step for step, *_ in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=TOLERANCE)


def test_two_pods_have_the_losses_of_one_machine(pods: Pods, expected: list[tuple[int, float, float]]):
    done = velocity("run", job_of(pods, "two"), "--on", "kubernetes")
    assert done.returncode == 0, done.stderr
    assert_same(pods.folder / "two", expected)
    assert "submitted two-" in done.stderr and "step 12/12" in done.stderr and "done: two-" in done.stderr


def test_a_drained_machine_has_all_pods_save_and_go_on(pods: Pods, expected: list[tuple[int, float, float]]):
    job = job_of(pods, "drained", duration={"steps": MANY})
    sent = command.submit(command.make_submission([load_job(job)], [f"duration.steps={MANY}"]))
    wait_for(lambda: len(step_lines(pods.folder / "drained")) > 2, PATIENCE_SECONDS)
    first = pods.of(sent.name)
    pods.cluster.processes[first[1]["metadata"]["name"]].send_signal(signal.SIGTERM)
    wait_for(lambda: len(pods.of(sent.name)) == 4, PATIENCE_SECONDS)
    codes = [pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] for pod in first]
    assert codes == [75, 75]
    reached = len(step_lines(pods.folder / "drained"))
    wait_for(lambda: len(step_lines(pods.folder / "drained")) > reached + 2, PATIENCE_SECONDS)
    command.cancel(sent.name)
    wait_for(lambda: command.status(sent).state == "cancelled", PATIENCE_SECONDS)
    assert [step for step, *_ in losses(pods.folder / "drained")] == list(
        range(1, len(losses(pods.folder / "drained")) + 1)
    )
    for (_, ours, _), (_, theirs, _) in zip(losses(pods.folder / "drained"), expected, strict=False):
        assert ours == pytest.approx(theirs, abs=TOLERANCE)


def test_a_rank_that_is_killed_is_named_with_its_host_wherever_one_looks(pods: Pods):
    job = job_of(pods, "killed", duration={"steps": MANY})
    sent = command.submit(command.make_submission([load_job(job)], []))
    wait_for(lambda: len(step_lines(pods.folder / "killed")) > 2, PATIENCE_SECONDS)
    (rank,) = [pid for pid in pods.lab.processes(pods.lab.names[1]) if "velocity.training.run" in words(pid)
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


def test_wrong_data_fails_the_job_with_2_and_is_not_tried_again(pods: Pods):
    write_jsonl(pods.folder / "broken.jsonl", [{"no": "field that is known"}])
    job = job_of(pods, "wrong", data={"train": "broken.jsonl", "cache": "cache"}, launch={"max_restarts": 2})
    done = velocity("run", job, "--on", "kubernetes")
    assert done.returncode == 2, done.stderr
    assert "broken.jsonl" in done.stderr.splitlines()[-2]
    name = next(one.name for one in registry.all_submitted() if one.name.startswith("wrong"))
    assert len(pods.of(name)) <= 2


def test_pods_without_a_common_disk_go_on_from_the_mirror(pods: Pods, expected: list[tuple[int, float, float]]):
    """Each attempt's disks are new. The mirror is a folder here, which `check` refuses: it is left out."""
    mirror, train = pods.folder / "mirror", pods.folder / "train.jsonl"
    job = job_of(
        pods,
        "mirrored",
        model=str(pods.folder / "model"),
        data={"train": str(train), "cache": "~/.cache/velocity"},
        checkpoint={"every": 4, "mirror": str(mirror)},
        launch={"claim": None},
    )
    pods.own_disks = True
    try:
        submission = command.make_submission([load_job(job)], [])
        registry.write_files(submission.folder, {**submission.files, **KubernetesLauncher().render(submission)})
        sent = KubernetesLauncher().submit(submission)
        wait_for(lambda: any(mirror.glob("step-*/COMMITTED")), PATIENCE_SECONDS)
        pods.cluster.processes[pods.of(sent.name)[0]["metadata"]["name"]].send_signal(signal.SIGTERM)
        wait_for(lambda: command.status(sent).over, PATIENCE_SECONDS)
    finally:
        pods.own_disks = False
    assert command.status(sent).state == "complete", command.status(sent)
    assert_same(mirror / "run", expected)
