"""What a cluster's answers mean. They have the shapes that Kubernetes' documentation shows."""

from __future__ import annotations

import json
from typing import Any

from velocity.launch.kubernetes.state import INDEX, pods_of, status_of
from velocity.launch.launcher import JobStatus


def job_answer(*conditions: tuple[str, str], **spec: Any) -> dict[str, Any]:
    """As `kubectl get job NAME -o json` answers: (type, reason) of its conditions."""
    made = [{"type": kind, "status": "True", "reason": reason, "message": f"about {reason}",
             "lastProbeTime": "2026-11-25T21:00:00Z", "lastTransitionTime": "2026-11-25T21:00:00Z"}
            for kind, reason in conditions]  # fmt: skip
    return {"apiVersion": "batch/v1", "metadata": {"name": "a"}, "spec": spec, "status": {"conditions": made}}


def pod_answer(index: int, phase: str, state: dict[str, Any] | None = None, made: str = "10:00", **status: Any) -> Any:
    """One of the items of `kubectl get pods -o json`."""
    containers = [] if state is None else [{"name": "velocity", "ready": False, "restartCount": 0, "state": state}]
    return {
        "apiVersion": "v1", "kind": "Pod", "spec": {"nodeName": f"ip-10-0-0-{index}"},
        "metadata": {"name": f"a-{index}-{made[-1]}x", "creationTimestamp": f"2026-11-25T{made}:00Z",
                     "annotations": {INDEX: str(index)}, "labels": {INDEX: str(index), "job-name": "a"}},
        "status": {"phase": phase, "containerStatuses": containers, **status},
    }  # fmt: skip


def ended(status: int, message: str = "", reason: str = "Error", at: str = "10:05") -> dict[str, Any]:
    times = {"startedAt": "2026-11-25T10:00:01Z", "finishedAt": f"2026-11-25T{at}:00Z"}
    return {"terminated": {"exitCode": status, "reason": reason, "message": message, **times, "containerID": "x://1"}}


def said(status: int, why: str, at: str = "10:05") -> dict[str, Any]:
    return ended(status, json.dumps({"exit_status": status, "why": why}), at=at)


def status(job: dict[str, Any] | None, *pods: Any, cancelled: bool = False) -> JobStatus:
    return status_of(job, pods_of({"kind": "List", "items": list(pods)}), cancelled=cancelled)


RUNNING = {"running": {"startedAt": "2026-11-25T10:00:01Z"}}


def test_a_job_runs_once_a_pod_does_and_says_before_why_none_does():
    unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                   "message": "0/4 nodes are available: 4 Insufficient nvidia.com/gpu."}  # fmt: skip
    waiting = status(job_answer(), pod_answer(1, "Pending", conditions=[unscheduled]))
    assert waiting.state == "waiting" and waiting.why == f"pod 1 waits: Unschedulable: {unscheduled['message']}"
    pulling = {"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "x"'}}
    assert 'ImagePullBackOff: Back-off pulling image "x"' in status(job_answer(), pod_answer(0, "Pending", pulling)).why
    creating = {"waiting": {"reason": "ContainerCreating"}}
    assert status(job_answer(), pod_answer(0, "Pending", creating)) == JobStatus("waiting")
    assert status(job_answer(), pod_answer(0, "Running", RUNNING), pod_answer(1, "Pending")).state == "running"
    assert "suspended" in status(job_answer(("Suspended", "JobSuspended"))).why


def test_what_is_about_to_fail_is_not_over_yet():
    assert not status(job_answer(("FailureTarget", "PodFailurePolicy")), pod_answer(0, "Running", RUNNING)).over


def test_a_condition_that_is_no_longer_true_says_nothing():
    resumed = job_answer(("Suspended", "JobResumed"))
    resumed["status"]["conditions"][0]["status"] = "False"
    assert status(resumed) == JobStatus("waiting")


def test_a_complete_job_is_complete():
    done = job_answer(("SuccessCriteriaMet", "CompletionsReached"), ("Complete", "CompletionsReached"))
    assert status(done, pod_answer(0, "Succeeded", ended(0, reason="Completed"))) == JobStatus("complete", 0)


def test_a_failed_job_says_what_node_0_said():
    failed = job_answer(("Failed", "BackoffLimitExceeded"))
    why = "rank 3 (host a-1): no\n  where: x"
    pods = (pod_answer(1, "Failed", said(1, "of node 1", at="10:01")), pod_answer(0, "Failed", said(1, why)))
    assert status(failed, *pods) == JobStatus("failed", 1, why)


def test_where_node_0_is_gone_the_first_that_failed_is_asked():
    failed = job_answer(("Failed", "BackoffLimitExceeded"))
    late, early = said(1, "late", at="10:03"), said(1, "early", at="10:02")
    assert status(failed, pod_answer(1, "Failed", late), pod_answer(2, "Failed", early)).why == "early"


def test_what_an_attempt_said_that_was_followed_by_another_does_not_count():
    failed = job_answer(("Failed", "PodFailurePolicy"))
    pods = (
        pod_answer(0, "Failed", said(1, "long past"), made="10:00"),
        pod_answer(0, "Failed", said(75, "saved"), made="11:00"),
        pod_answer(1, "Failed", said(2, "no such model"), made="11:00"),
        pod_answer(1, "Failed", said(75, "saved"), made="10:00"),
    )
    assert status(failed, *pods) == JobStatus("failed", 2, "no such model")


def test_a_node_whose_memory_was_full_is_named_before_the_others_who_only_miss_it():
    failed = job_answer(("Failed", "BackoffLimitExceeded"))
    killed = pod_answer(1, "Failed", ended(137, "step 7/9", reason="OOMKilled"))
    found = status(failed, pod_answer(0, "Failed", said(1, "host a-1 gave no sign")), killed)
    assert found.exit_status == 1
    assert found.why.startswith("node 1 (pod a-1-0x, on ip-10-0-0-1) was killed: its memory was full\n")


def test_a_node_that_said_nothing_is_told_by_its_last_line():
    failed = job_answer(("Failed", "BackoffLimitExceeded"))
    found = status(failed, pod_answer(0, "Failed", ended(139, "step 1\nSegmentation fault\n\n")))
    assert found == JobStatus("failed", 1, "node 0 (pod a-0-0x, on ip-10-0-0-0) ended with 139: Segmentation fault")
    assert status(failed).why == "BackoffLimitExceeded: about BackoffLimitExceeded"


def test_a_job_at_its_deadline_is_interrupted_and_goes_on_with_the_same_command():
    found = status(job_answer(("Failed", "DeadlineExceeded"), activeDeadlineSeconds=5400))
    assert (found.state, found.exit_status) == ("interrupted", 75)
    assert "launch.max_hours=1.5" in found.why


def test_a_cancelled_job_runs_until_its_pods_have_saved():
    assert status(None, pod_answer(0, "Running", RUNNING), cancelled=True).state == "running"
    assert status(None, cancelled=True).state == "cancelled"
    gone = status(None)
    assert gone.state == "unknown" and "deleted" in gone.why
