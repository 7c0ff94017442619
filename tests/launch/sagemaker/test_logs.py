"""The lines of a training job: in their order, each once, whatever becomes of the connection."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError

from tests.sagemaker_account import Account, account
from velocity.launch.sagemaker import logs
from velocity.launch.sagemaker.launcher import _patiently


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
    monkeypatch.setattr("velocity.launch.sagemaker.launcher.POLL_SECONDS", 0.0)
    put(aws, "job-c", "algo-1", (0, "one"), (1, "two"))
    put(aws, "job-c", "algo-2", (2, "three"))
    streams = logs.Streams(Failing(aws.client("logs")), "job-c")
    assert _patiently(streams.new_lines, "job-c") == ["algo-1  one", "algo-1  two", "algo-2  three"]
