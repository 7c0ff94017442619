"""Lines of pods, followed: nothing twice, nothing lost, and silence explained."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from velocity.errors import JobError
from velocity.launch.kubernetes import logs
from velocity.launch.kubernetes.kubectl import Kubectl
from velocity.launch.kubernetes.logs import follow
from velocity.launch.kubernetes.state import Pod


def pod(index: int, phase: str = "Running") -> Pod:
    return Pod(f"a-{index}-x", index, phase, "2026-11-25T10:00:00Z")


class Recorded(Kubectl):
    """Of each pod the texts that one connection after the other brings."""

    connections: dict[str, list[str]]
    asked: list[Sequence[str]]

    def stream(self, *arguments: str) -> subprocess.Popen[str]:
        self.asked.append(arguments)
        text = self.connections[arguments[-1]].pop(0)
        return subprocess.Popen([sys.executable, "-c", f"print({text!r}, end='')"], stdout=subprocess.PIPE, text=True)


@pytest.fixture
def kubectl(monkeypatch) -> Any:
    monkeypatch.setattr(logs, "LOOK_SECONDS", 0.5)
    made = Recorded(None, "default")
    object.__setattr__(made, "asked", [])
    return made


def looks(*answers: Any) -> Any:
    """One answer after the other; an error is raised."""
    left = list(answers)

    def look() -> Any:
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return look


def test_after_a_broken_connection_lines_go_on_where_they_ended(kubectl):
    first = "2026-11-25T10:00:01.100000000Z one\n2026-11-25T10:00:01.200000000Z two\n"
    again = "2026-11-25T10:00:01.200000000Z two\n2026-11-25T10:00:01.300000000Z three  x\n"
    object.__setattr__(kubectl, "connections", {"a-1-x": [first, again]})
    running, over = ([pod(1)], False, ""), ([pod(1, "Succeeded")], True, "")
    assert list(follow(kubectl, looks(running, running, over))) == ["[1] one", "[1] two", "[1] three  x"]
    assert kubectl.asked[0] == ("logs", "--follow", "--timestamps", "a-1-x")
    assert "--since-time=2026-11-25T10:00:01.200000000Z" in kubectl.asked[1]


def test_why_nothing_runs_yet_is_said_once_as_long_as_it_is_the_same(kubectl):
    waits = [pod(0, "Pending")], False, "pod 0 waits: Unschedulable"
    pulls = [pod(0, "Pending")], False, "pod 0 waits: ImagePullBackOff"
    said = list(follow(kubectl, looks(waits, waits, pulls, ([], True, ""))))
    assert said == ["pod 0 waits: Unschedulable", "pod 0 waits: ImagePullBackOff"]
    assert kubectl.asked == []


def test_a_cluster_out_of_reach_is_waited_for_and_not_for_ever(kubectl, monkeypatch):
    object.__setattr__(kubectl, "connections", {"a-0-x": ["2026-11-25T10:00:01.100000000Z one\n"]})
    lost = JobError("connection refused")
    assert list(follow(kubectl, looks(lost, lost, ([pod(0, "Succeeded")], True, "")))) == ["one"]
    monkeypatch.setattr(logs, "LOST_SECONDS", 0.8)
    with pytest.raises(JobError, match="connection refused"):
        list(follow(kubectl, looks(lost, lost, lost, lost)))
