"""How a Job of Kubernetes stands, out of what the cluster says of it and of its pods. Pure: it asks no cluster."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from velocity.errors import InterruptedRun, JobError, UserError
from velocity.launch.launcher import JobStatus, state_of

INDEX = "batch.kubernetes.io/job-completion-index"
MEANT = (0, JobError.exit_status, UserError.exit_status, InterruptedRun.exit_status)
AGAIN = (0, InterruptedRun.exit_status)  # no failure: done, or saved


@dataclass(frozen=True)
class Pod:
    """One attempt of one node."""

    name: str
    index: int
    phase: str  # Pending, Running, Succeeded, Failed or Unknown
    created: str
    host: str = ""
    waits: str = ""  # why it does not run yet
    ended: Mapping[str, Any] | None = None  # its container's last words: exitCode, reason, message, finishedAt

    @property
    def failed(self) -> bool:
        """True where its container ended otherwise than done or saved."""
        return self.ended is not None and self.ended["exitCode"] not in AGAIN


def pods_of(answer: Mapping[str, Any] | None) -> list[Pod]:
    """The pods of a list, by index, of one index the oldest first."""
    found = [_pod(item) for item in (answer or {}).get("items", [])]
    return sorted(found, key=lambda pod: (pod.index, pod.created))


def _pod(item: Mapping[str, Any]) -> Pod:
    metadata, status = item["metadata"], item.get("status", {})
    marks = {**metadata.get("labels", {}), **metadata.get("annotations", {})}
    containers = status.get("containerStatuses") or [{}]
    state = containers[0].get("state", {})
    return Pod(
        metadata["name"], int(marks.get(INDEX, -1)), status.get("phase", "Unknown"),
        metadata.get("creationTimestamp", ""), item.get("spec", {}).get("nodeName", ""),
        _waits(status, state.get("waiting")), state.get("terminated"),
    )  # fmt: skip


def _waits(status: Mapping[str, Any], waiting: Mapping[str, Any] | None) -> str:
    for condition in status.get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"{condition.get('reason', '')}: {condition.get('message', '')}".rstrip(": ")
    if not waiting or waiting.get("reason") in ("ContainerCreating", "PodInitializing"):
        return ""
    return f"{waiting.get('reason', '')}: {waiting.get('message', '')}".rstrip(": ")


def status_of(job: Mapping[str, Any] | None, pods: Sequence[Pod], *, cancelled: bool) -> JobStatus:
    """Where the job is; `cancelled` where we have deleted it."""
    if job is None:
        return _without_job(pods, cancelled=cancelled)
    conditions = {one["type"]: one for one in job.get("status", {}).get("conditions", ()) if one["status"] == "True"}
    if "Complete" in conditions:
        return JobStatus("complete", 0)
    if "Failed" in conditions:
        return _failed(conditions["Failed"], pods, job)
    if any(pod.phase == "Running" for pod in pods):
        return JobStatus("running")
    why = next((f"pod {pod.index} waits: {pod.waits}" for pod in pods if pod.waits), "")
    return JobStatus("waiting", why="the Job is suspended" if "Suspended" in conditions else why)


def _without_job(pods: Sequence[Pod], *, cancelled: bool) -> JobStatus:
    if any(pod.phase in ("Pending", "Running") for pod in pods):
        return JobStatus("running", why="its pods were told to save and to end")
    if cancelled:
        return JobStatus("cancelled", InterruptedRun.exit_status, "it was cancelled, and told to save before")
    what = "the cluster does not know it any more: its Job was deleted, or ended more than a week ago"
    return JobStatus("unknown", why=what)


def _failed(condition: Mapping[str, Any], pods: Sequence[Pod], job: Mapping[str, Any]) -> JobStatus:
    if condition.get("reason") == "DeadlineExceeded":
        hours = job["spec"].get("activeDeadlineSeconds", 0) / 3600
        why = f"stopped after launch.max_hours={hours:g}; it was told to save before"
        return JobStatus("interrupted", InterruptedRun.exit_status, why)
    pod = _witness(pods)
    if pod is None or pod.ended is None:
        said = f"{condition.get('reason', 'the Job failed')}: {condition.get('message', '')}".rstrip(": ")
        return JobStatus("failed", JobError.exit_status, said)
    exit_status, why = _verdict(pod, pod.ended)
    return JobStatus(state_of(exit_status), exit_status, why)


def _witness(pods: Iterable[Pod]) -> Pod | None:
    """The pod whose words count: one whose memory was full, else node 0 of the last attempt, else the first to fail.

    All nodes give the same verdict; but one that the kernel killed has said nothing, and Kubernetes has.
    """
    last = {pod.index: pod for pod in pods}  # of one index the oldest comes first
    failed = sorted((pod for pod in last.values() if pod.failed), key=_when)
    full = (pod for pod in failed if pod.ended and pod.ended.get("reason") == "OOMKilled")
    return next(full, None) or next((pod for pod in failed if pod.index == 0), None) or next(iter(failed), None)


def _when(pod: Pod) -> str:
    return str((pod.ended or {}).get("finishedAt", ""))


def _verdict(pod: Pod, ended: Mapping[str, Any]) -> tuple[int, str]:
    """Exit status and reason, in the node's own words where it had any."""
    message = ended.get("message", "")
    if ended.get("reason") == "OOMKilled":
        what = f"node {pod.index} (pod {pod.name}, on {pod.host}) was killed: its memory was full"
        return (
            JobError.exit_status,
            f"{what}\n  where: launch.memory\n  fix:   ask for more, or plan a thriftier strategy",
        )
    try:
        verdict = json.loads(message)
        return int(verdict["exit_status"]), str(verdict["why"])
    except (ValueError, KeyError, TypeError):
        pass
    status = ended["exitCode"]
    said = [line for line in message.splitlines() if line.strip()]
    what = f"node {pod.index} (pod {pod.name}, on {pod.host}) ended with {status}" + (f": {said[-1]}" if said else "")
    return (status if status in MEANT else JobError.exit_status), what
