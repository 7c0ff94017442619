"""What a way to a job's hosts gives: which hosts, what starts `host.py` there, and what that is told. It knows none."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from velocity.config.launch import COMMON
from velocity.config.target import LaunchConfig
from velocity.launch.launcher import Submission
from velocity.launch.supervised.supervisor import NODES


@dataclass(frozen=True)
class Host:
    """One host: its name, the command that starts `host.py` there, and the order that this is given."""

    name: str
    command: Sequence[str]
    order: Mapping[str, Any]


class Way(Protocol):
    """How the hosts of a job are reached."""

    sends: bool  # the job's files do not lie there already

    def hosts(self, submission: Submission) -> Sequence[Host]:
        """Those that run it, in the order of their ranks. Pure."""
        ...

    def check(self, submission: Submission) -> None:
        """Nothing, or UserError with each host that could not run it."""
        ...


def rendered(hosts: Sequence[Host], files: Sequence[str]) -> Mapping[str, str]:
    """What a supervisor reads: the hosts, and the job's files that each of them is sent."""
    nodes = [{"host": one.name, "command": list(one.command), "order": dict(one.order)} for one in hosts]
    return {NODES: json.dumps({"files": list(files), "nodes": nodes}, indent=1) + "\n"}


def settings(launch: LaunchConfig, **more: Any) -> str:
    """The launch section as an override: the files that are sent may hold another, or one that means nothing there."""
    values = {"kind": launch.model_dump()["kind"], **launch.model_dump(include=set(COMMON), exclude_defaults=True)}
    return f"launch={json.dumps({**values, **more})}"
