"""How a training job ended, as SageMaker describes it."""

from __future__ import annotations

from typing import Any

import pytest

from velocity.launch.launcher import JobStatus
from velocity.launch.sagemaker.failure import LONGEST, failure_text, status_of

WHY = "rank 11 (algo-2) died of SIGKILL at step 7\n  where: algo-2\n  fix:   was memory short?"


def described(status: str, phase: str = "", reason: str = "") -> dict[str, Any]:
    return {"TrainingJobStatus": status, "SecondaryStatus": phase or status, "FailureReason": reason}


def amazons(text: str, code: int = 1) -> str:
    """What SageMaker makes of the text that a container leaves."""
    return f"AlgorithmError: {text[:1024]}, exit code: {code}"


@pytest.mark.parametrize(
    ("description", "status"),
    [
        (described("Completed"), JobStatus("complete", 0)),
        (described("Failed", reason=amazons(failure_text(1, WHY))), JobStatus("failed", 1, WHY)),
        (described("Failed", reason=amazons(failure_text(2, WHY), 2)), JobStatus("failed", 2, WHY)),
        (described("Failed", reason=amazons(failure_text(75, "saved"), 75)), JobStatus("interrupted", 75, "saved")),
        (described("Failed", reason="CapacityError: none"), JobStatus("failed", 1, "CapacityError: none")),
        (described("Failed"), JobStatus("failed", 1, "SageMaker says nothing of it")),
        (described("Stopped", "Stopped"), JobStatus("interrupted", 75, "it was stopped")),
        (described("Stopped", "MaxRuntimeExceeded"), JobStatus("interrupted", 75, "launch.max_hours were over")),
        (described("Stopped", "MaxWaitTimeExceeded"), JobStatus("interrupted", 75, "launch.max_wait_hours were over")),
        (described("InProgress", "Training"), JobStatus("running")),
        (described("InProgress", "Interrupted"), JobStatus("waiting", why="Interrupted")),
        (described("InProgress", "Downloading"), JobStatus("waiting", why="Downloading")),
        (described("Stopping", "Stopping"), JobStatus("running")),
    ],
)
def test_a_description_says_where_a_job_is(description: dict[str, Any], status: JobStatus):
    assert status_of(description) == status


def test_a_reason_that_is_cut_off_still_says_the_exit_status_and_the_beginning():
    text = failure_text(2, "the first words " + "x" * 3000)
    assert len(text) == LONGEST
    status = status_of(described("Failed", reason=amazons(text, 2)))
    assert (status.state, status.exit_status) == ("failed", 2)
    assert status.why.startswith("the first words xxx")
