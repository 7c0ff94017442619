"""The lines of a training job, of all its hosts, from CloudWatch. It knows no job but by its name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from velocity.launch.sagemaker.account import code_of

GROUP = "/aws/sagemaker/TrainingJobs"


class Line(NamedTuple):
    """What a host printed; lines of one moment are in the order of their hosts."""

    milliseconds: int
    host: tuple[int, str]
    place: int  # in its stream
    text: str


class Streams:
    """Reads each line once."""

    def __init__(self, client: Any, job: str) -> None:
        self.client, self.job = client, job
        self._tokens: dict[str, str] = {}  # stream → where its unread lines begin
        self._read: dict[str, int] = {}
        self._unsaid: list[Line] = []  # read, before an error came

    def new_lines(self) -> list[str]:
        """What has come since the last call, `algo-2  text`, in the order of time."""
        for stream in self._streams():
            self._unsaid.extend(self._of(stream))
        found, self._unsaid = sorted(self._unsaid), []
        return [f"{line.host[1]}  {line.text}" for line in found]

    def _streams(self) -> list[str]:
        try:
            pages = self.client.get_paginator("describe_log_streams").paginate(
                logGroupName=GROUP, logStreamNamePrefix=f"{self.job}/"
            )
            return [stream["logStreamName"] for page in pages for stream in page["logStreams"]]
        except Exception as error:  # botocore makes its errors while it runs
            if code_of(error) == "ResourceNotFoundException":
                return []  # no container has started yet
            raise

    def _of(self, stream: str) -> Iterator[Line]:
        host = _host(stream)
        while True:
            where: Mapping[str, Any] = {"nextToken": self._tokens[stream]} if stream in self._tokens else {}
            page = self.client.get_log_events(logGroupName=GROUP, logStreamName=stream, startFromHead=True, **where)
            for event in page["events"]:
                self._read[stream] = place = self._read.get(stream, 0) + 1
                yield Line(event["timestamp"], host, place, event["message"].rstrip("\r\n"))
            token = page["nextForwardToken"]
            if token == self._tokens.get(stream):
                return
            self._tokens[stream] = token


def _host(stream: str) -> tuple[int, str]:
    """Of `sft-1125/algo-10-1700000000`: 10, and algo-10."""
    name = re.sub(r"-\d{6,}$", "", stream.rpartition("/")[2])
    number = re.search(r"(\d+)$", name)
    return (int(number[1]) if number else 0, name)


def follow(
    new_lines: Callable[[], list[str]],
    describe: Callable[[], Mapping[str, Any]],
    pause: Callable[[], None],
    over: Callable[[Any], bool],
) -> Iterator[str]:
    """Its lines, and what SageMaker does before and after them, until it is over and nothing comes any more."""
    told, quiet = 0, 0
    while quiet < 2:  # the last lines come later than the end
        now = describe()
        transitions = now.get("SecondaryStatusTransitions", [])
        lines = new_lines()
        yield from (_transition(one) for one in transitions[told:])
        yield from lines
        quiet = quiet + 1 if over(now) and not lines else 0
        told = len(transitions)
        pause()


def _transition(one: Mapping[str, Any]) -> str:
    message = one.get("StatusMessage", "")
    return f"sagemaker  {one['Status']}{': ' if message else ''}{message}"
