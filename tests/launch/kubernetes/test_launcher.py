"""A Kubernetes cluster as a target: kubectl is the real one, the cluster is tests/kubernetes_cluster.py."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import kubernetes_cluster as small
from tests.commands import processes_naming
from tests.launch.kubernetes.jobs import sft, submission
from velocity.errors import InterruptedRun, JobError, UserError
from velocity.launch import command, container
from velocity.launch.kubernetes.launcher import KubernetesLauncher
from velocity.launch.launcher import JobStatus, Submission, Submitted
from velocity.launch.submitted import find

RUN = "a-1125-100000"
needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")

NODE = """
import json, os, signal, sys, time
index, place = os.environ["JOB_COMPLETION_INDEX"], os.path.dirname(os.environ["VELOCITY_VERDICT"])
again = os.path.join(os.path.dirname(place), "again-" + index)
def end(status, why):
    with open(os.environ["VELOCITY_VERDICT"], "w") as file:
        json.dump({"exit_status": status, "why": why}, file)
    sys.exit(status)
signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), end(75, "stopped; saved")))
print("node", index, "of", os.environ["VELOCITY_NODES"], flush=True)
time.sleep(1)
"""
ENDS = {
    "done": "end(0, '')",
    "wrong": "end(2, 'no such model\\n  where: job.yaml:2')",
    "fails": "end(1, 'rank 1 (host a-1): no')",
    "saves once": "os.path.exists(again) or (open(again, 'w').close(), end(75, 'saved'))\nprint('goes on', flush=True)",
    "lasts": "time.sleep(60)",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Iterator[Path]:
    """The current folder, in which kubectl finds the cluster and nothing else of ours."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "cluster" / "kubeconfig"))
    yield tmp_path
    assert processes_naming(str(tmp_path)) == []
    assert processes_naming(RUN) == []


def nodes_that(how: str) -> small.Start:
    def start(index: int, *others: Any) -> Any:
        script = [sys.executable, "-c", NODE + ENDS[how]]
        return small.run_here(index, script, *others[1:])

    return start


def sent_to(folder: Path, launch: dict[str, Any] | None = None) -> Submitted:
    made = submission(sft({"nodes": 2, **(launch or {})}), name=RUN)
    return command.submit(Submission(made.name, folder / ".velocity" / "jobs" / made.name, made.jobs, made.files))


@needs_kubectl
def test_a_job_is_followed_to_its_end_and_leaves_nothing_but_what_the_cluster_forgets_by_itself(folder: Path):
    with small.running(folder / "cluster", nodes_that("done")) as there:
        sent = sent_to(folder)
        lines: list[str] = []
        found = command.follow(sent, lines.append)
        assert found == JobStatus("complete", 0)
        assert sorted(lines) == ["[1] node 1 of 2", "node 0 of 2"]
        job = there.objects["jobs", sent.name]
        for kind in ("services", "configmaps"):  # they go when the Job does
            assert there.objects[kind, sent.name]["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]
        again = list(KubernetesLauncher().logs(sent, follow=False))
        assert again == ["node 0 of 2", "[1] node 1 of 2"]
        KubernetesLauncher().cancel(sent)  # what is over stays as it is
        assert there.objects["jobs", sent.name] is job


@needs_kubectl
@pytest.mark.parametrize(("how", "code", "why"), [("wrong", 2, "no such model"), ("fails", 1, "rank 1 (host a-1): no")])
def test_a_job_that_fails_ends_with_its_own_status_and_reason(folder: Path, how: str, code: int, why: str):
    with small.running(folder / "cluster", nodes_that(how)) as there:
        found = command.follow(sent_to(folder, {"max_restarts": 1 if how == "wrong" else 0}), lambda line: None)
        assert (found.state, found.exit_status) == ("failed", code) and found.why.startswith(why)
        # it was asked what it needs: 2 is not tried again, whatever else may be
        assert len(there.processes) == 2
        with pytest.raises(JobError, match="no such model" if code == 2 else "rank 1"):
            command.conclude(find(RUN), found)


@needs_kubectl
def test_a_job_that_saves_goes_on_by_itself_and_is_followed_across(folder: Path):
    with small.running(folder / "cluster", nodes_that("saves once")) as there:
        lines: list[str] = []
        assert command.follow(sent_to(folder), lines.append) == JobStatus("complete", 0)
        assert len(there.processes) == 4
        assert sorted(lines) == sorted(["node 0 of 2", "[1] node 1 of 2"] * 2 + ["goes on", "[1] goes on"])


@needs_kubectl
def test_a_cancelled_job_saves_before_it_ends(folder: Path):
    with small.running(folder / "cluster", nodes_that("lasts")) as there:
        sent = sent_to(folder)
        wait_for(lambda: command.status(sent).state == "running")
        wait_for(lambda: all("node" in (one / "log").read_text() for one in (folder / "cluster/pods").iterdir()))
        command.cancel(sent.name)
        wait_for(lambda: command.status(sent).state == "cancelled")
        assert {kind for kind, _ in there.objects} == {"namespaces"}
        assert [small.log_of(one)[-1] for one in (folder / "cluster/pods").iterdir()] == ["saved", "saved"]
        with pytest.raises(InterruptedRun):
            command.conclude(sent, command.status(sent))


@needs_kubectl
def test_who_stops_following_leaves_the_job_running_and_no_process_here(folder: Path):
    with small.running(folder / "cluster", nodes_that("lasts")):
        sent = sent_to(folder)
        lines = KubernetesLauncher().logs(sent, follow=True)
        assert next(lines) in ("node 0 of 2", "[1] node 1 of 2")
        lines.close()  # type: ignore[attr-defined]
        assert processes_naming(RUN) == []
        assert command.status(sent).state == "running"


@needs_kubectl
def test_what_the_cluster_lacks_is_told_before_anything_is_sent(folder: Path):
    with small.running(folder / "cluster", nodes_that("done")) as there:
        claims = {"kind": "PersistentVolumeClaim", "apiVersion": "v1", "spec": {"accessModes": ["ReadWriteOnce"]}}
        there.add("persistentvolumeclaims", {**claims, "metadata": {"name": "narrow"}})
        for launch, words in (
            ({"namespace": "research"}, "no namespace research"),
            ({"claim": "files"}, "no persistentvolumeclaim files"),
            ({"claim": "narrow"}, "the claim narrow is ReadWriteOnce, and 2 nodes write on it"),
            ({"secrets": "hub"}, "no secret hub"),
            ({"service_account": "trainer"}, "no serviceaccount trainer"),
            ({"image": None}, "the job has no image"),
            ({"context": "elsewhere"}, "kubectl has no context elsewhere"),
        ):
            with pytest.raises((UserError, JobError), match=words):
                sent_to(folder, launch)
        there.forbidden.add("configmaps")
        with pytest.raises(UserError, match="you may not create configmaps"):
            sent_to(folder)
        assert {kind for kind, _ in there.objects} == {"namespaces", "persistentvolumeclaims"}
        assert not (folder / ".velocity").exists()


@needs_kubectl
def test_what_the_cluster_itself_refuses_is_told_in_its_words(folder: Path, monkeypatch):
    monkeypatch.setattr("velocity.launch.kubernetes.manifest.SAVE_SECONDS", "soon")
    with small.running(folder / "cluster", nodes_that("done")), pytest.raises(UserError, match="soon"):
        sent_to(folder)


@needs_kubectl
def test_a_job_that_is_refused_at_last_leaves_nothing_in_the_cluster(folder: Path):
    with small.running(folder / "cluster", nodes_that("done")) as there:
        there.exhausted.add("jobs")
        with pytest.raises(UserError, match="exceeded quota"):
            sent_to(folder)
        assert {kind for kind, _ in there.objects} == {"namespaces"}


@needs_kubectl
def test_a_cluster_that_does_not_answer_is_told_as_such(folder: Path):
    with small.running(folder / "cluster", nodes_that("done")):
        pass
    with pytest.raises(JobError, match="refused"):
        sent_to(folder)


def test_a_machine_without_kubectl_is_told_so(folder: Path, monkeypatch):
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(UserError, match="kubectl is not installed"):
        sent_to(folder)


def test_an_image_without_cuda_is_refused_where_gpus_are_asked_for(folder: Path):
    container._remember("pushed", {"image": "r.example.org/velocity@sha256:1", "accelerator": "cpu", "time": 1.0})
    with pytest.raises(UserError, match="the image for machines without a GPU"):
        sent_to(folder, {"image": None, "gpus_per_node": 1})


def wait_for(true: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to that in time"
        time.sleep(0.2)
