"""What a training job says: how it ended, its lines in their order, and the curves that are read out of them."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError

from tests.launch.sagemaker_account import Account, account
from tests.launch.sagemaker_jobs import GENERATE, HOME, LAUNCH, SFT, submission
from velocity.config.job import Job
from velocity.inference.progress import Report
from velocity.launch.aws import logs
from velocity.launch.aws.failure import LONGEST, failure_text, status_of
from velocity.launch.aws.metrics import definitions
from velocity.launch.launcher import JobStatus, Submitted
from velocity.launch.sagemaker import SageMakerLauncher, _patiently
from velocity.training.callbacks.progress import ProgressReport

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


@pytest.fixture(name="aws", scope="module")
def _aws() -> Iterator[Account]:
    with account() as made:
        yield made


DAY = int(time.time() * 1000) - 3_600_000  # CloudWatch takes nothing from long ago


def put(aws: Account, job: str, host: str, *lines: tuple[int, str]) -> None:
    """The host has printed lines, so many milliseconds after an hour ago."""
    cloudwatch, stream = aws.client("logs"), f"{job}/{host}-1795600000"
    for make, name in ((cloudwatch.create_log_group, {}), (cloudwatch.create_log_stream, {"logStreamName": stream})):
        with contextlib.suppress(cloudwatch.exceptions.ResourceAlreadyExistsException):
            make(logGroupName=logs.GROUP, **name)
    cloudwatch.put_log_events(
        logGroupName=logs.GROUP, logStreamName=stream,
        logEvents=[{"timestamp": DAY + at, "message": text} for at, text in lines],
    )  # fmt: skip


def test_lines_come_in_the_order_of_time_and_then_of_hosts_and_once(aws: Account):
    for number in (10, 2, 1):
        put(aws, "job-a", f"algo-{number}", (1000, "first"), (2000 + number, "second"))
    put(aws, "job-ab", "algo-1", (0, "another job's"))
    streams = logs.Streams(aws.client("logs"), "job-a")
    first = ["algo-1  first", "algo-2  first", "algo-10  first"]
    assert streams.new_lines() == [*first, *(line.replace("first", "second") for line in first)]
    put(aws, "job-a", "algo-2", (9000, "third"))
    assert streams.new_lines() == ["algo-2  third"]
    assert streams.new_lines() == []


def test_ten_hosts_are_sorted_by_number():
    names = [f"job/algo-{number}-1795600000" for number in (10, 9, 1, 2)]
    assert [logs._host(name)[1] for name in sorted(names, key=logs._host)] == ["algo-1", "algo-2", "algo-9", "algo-10"]


def test_a_job_whose_containers_have_not_started_has_no_lines(aws: Account):
    assert logs.Streams(aws.client("logs"), "nothing-yet").new_lines() == []


class Scripted:
    """CloudWatch and SageMaker as a script: what each poll finds."""

    def __init__(self, *polls: tuple[str, list[str]]) -> None:
        self.polls, self.now = list(polls), -1

    def describe(self) -> dict[str, Any]:
        self.now = min(self.now + 1, len(self.polls) - 1)
        told = [{"Status": status, "StatusMessage": ""} for status, _ in self.polls[: self.now + 1]]
        return {"SecondaryStatusTransitions": told, "over": self.polls[self.now][0] == "Completed"}

    def new_lines(self) -> list[str]:
        lines, self.polls[self.now] = self.polls[self.now][1], (self.polls[self.now][0], [])
        return lines


def test_following_tells_phases_and_waits_for_lines_that_come_after_the_end():
    done = [("Completed", lines) for lines in (["b"], [], ["c"])]
    script: Any = Scripted(("Starting", []), ("Training", ["a"]), *done)
    lines = list(logs.follow(script.new_lines, script.describe, lambda: None, lambda description: description["over"]))
    assert [line for line in lines if not line.startswith("sagemaker")] == ["a", "b", "c"]
    assert lines[:2] == ["sagemaker  Starting", "sagemaker  Training"]


class Failing:
    """CloudWatch, to which the connection breaks now and then."""

    def __init__(self, client: Any) -> None:
        self.client, self.calls = client, 0

    def get_paginator(self, name: str) -> Any:
        return self.client.get_paginator(name)

    def get_log_events(self, **asked: Any) -> Any:
        self.calls += 1
        if self.calls in (2, 4, 5):
            raise EndpointConnectionError(endpoint_url="there")
        return self.client.get_log_events(**asked)


def test_a_broken_connection_loses_no_line_and_repeats_none(aws: Account, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("velocity.launch.sagemaker.POLL_SECONDS", 0.0)
    put(aws, "job-c", "algo-1", (0, "one"), (1, "two"))
    put(aws, "job-c", "algo-2", (2, "three"))
    streams = logs.Streams(Failing(aws.client("logs")), "job-c")
    assert _patiently(streams.new_lines, "job-c") == ["algo-1  one", "algo-1  two", "algo-2  three"]


def test_a_job_that_is_over_is_not_stopped_again(aws: Account):
    stopped: list[str] = []

    class Over:
        def describe_training_job(self, TrainingJobName: str) -> dict[str, Any]:
            return described("Completed")

        def stop_training_job(self, TrainingJobName: str) -> None:
            stopped.append(TrainingJobName)

    submitted = Submitted("x", "sagemaker", "x", Path("x"), (), 0.0, {"region": None})
    SageMakerLauncher(lambda region: lambda name: Over()).cancel(submitted)
    assert stopped == []


def read(jobs: list[Job], text: str) -> dict[str, float]:
    """What SageMaker reads out of a line."""
    found = ((one["Name"], re.search(one["Regex"], text)) for one in definitions(jobs))
    return {name: float(match[1]) for name, match in found if match}


def jobs_of(*jobs: dict[str, Any]) -> list[Job]:
    return list(submission(HOME, list(jobs), LAUNCH).jobs)


LINE = {"step": 7, "loss": 2.34567, "tokens_per_second": 12_345.6, "skipped": 2}
PAIRS = {**SFT, "task": "preference", "batch": {"rows": 4}}


@pytest.fixture(name="report")
def _report(tmp_path: Path) -> Iterator[ProgressReport]:
    made = ProgressReport(tmp_path, total=7, done=0)
    yield made
    made.close()


def test_the_loss_is_read_out_of_the_line_of_a_step(report: ProgressReport):
    report.on_step(LINE)
    line = Path(report.log.name).read_text()
    assert read(jobs_of(SFT), line) == {"train:loss": 2.3457}


def test_each_evaluation_set_has_a_curve_of_its_own(report: ProgressReport):
    report.on_eval(7, {"unseen": {"loss": 1.0, "perplexity": 12.5}, "general": {"loss": 2.0, "perplexity": 1e4}})
    line = Path(report.log.name).read_text()
    assert read(jobs_of(SFT), line) == {"eval:unseen:perplexity": 12.5, "eval:general:perplexity": 10000.0}


def test_a_preference_jobs_measures_are_curves_too(report: ProgressReport):
    report.on_eval(7, {"unseen": {"loss": 1.0, "accuracy": 0.75, "margin": -1.5}})
    line = Path(report.log.name).read_text()
    assert read(jobs_of(PAIRS), line) == {"eval:unseen:reward_accuracy": 0.75, "eval:unseen:reward_margin": -1.5}


def test_the_rate_of_rows_is_read_out_of_a_generate_jobs_line(tmp_path: Path):
    said: list[str] = []
    report = Report(tmp_path / "metrics.jsonl", tmp_path / "log.txt", 5000, 1000, said.append)
    report._started -= 10
    report.tell(rows=250, tokens=90_000, memory_gib=1.0)
    report.close()
    assert read(jobs_of(GENERATE), said[0])["generate:rows_per_second"] == pytest.approx(25.0, rel=0.01)


def test_no_curve_is_read_out_of_other_lines():
    assert read(jobs_of(SFT), json.dumps({"why": "saving a checkpoint …"})) == {}
