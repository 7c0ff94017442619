"""How a training job ended, in the one text that SageMaker keeps of it. Pure.

The container's own exit status is lost, so it stands at the head of that text: `[exit 2] what, where, what to do`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from velocity.errors import InterruptedRun
from velocity.launch.launcher import JobStatus, State, state_of

LONGEST = 1024  # characters that SageMaker keeps
_MARKED = re.compile(r"\[exit (\d+)\] (.*?)(?:,? *exit code: *-?\d+)?\s*$", re.DOTALL)
# Of a job that goes on; in other phases its container is not there yet, or not any more.
_WORKING = {"Training", "Uploading", "Stopping", "Updating"}


def failure_text(exit_status: int, why: str) -> str:
    """What a node writes to /opt/ml/output/failure."""
    text = f"[exit {exit_status}] {why.strip()}"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def status_of(description: Mapping[str, Any]) -> JobStatus:
    """Where a job is, from SageMaker's description of it."""
    status, phase = description["TrainingJobStatus"], description.get("SecondaryStatus", "")
    reason = description.get("FailureReason", "")
    if status == "Completed":
        return JobStatus("complete", 0)
    if status == "Stopped":
        return JobStatus("interrupted", InterruptedRun.exit_status, _why_stopped(phase))
    if status == "Failed":
        found = _MARKED.search(reason)
        if found is None:
            return JobStatus("failed", 1, reason or "SageMaker says nothing of it")
        exit_status = int(found[1]) or 1
        return JobStatus(state_of(exit_status), exit_status, found[2].rstrip())
    working: State = "running" if phase in _WORKING or status in ("Stopping", "Deleting") else "waiting"
    return JobStatus(working, why=_phase(description) if working == "waiting" else "")


def _why_stopped(phase: str) -> str:
    if phase == "MaxRuntimeExceeded":
        return "launch.max_hours were over"
    if phase == "MaxWaitTimeExceeded":
        return "launch.max_wait_hours were over"
    return "it was stopped"


def _phase(description: Mapping[str, Any]) -> str:
    """What is being done before the container starts, in SageMaker's words."""
    told = [one.get("StatusMessage") or one["Status"] for one in description.get("SecondaryStatusTransitions", ())]
    return str(told[-1]) if told else str(description.get("SecondaryStatus", ""))
