"""Hosts that ssh reaches: a connection each, over which a job is sent, watched and stopped."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Mapping

from velocity.config.launch import SshConfig
from velocity.launch import detached, place, reach
from velocity.launch.launcher import JobStatus, Submission, Submitted

NODES = ".velocity/nodes"  # where on a host the job's files lie while it runs
# ControlPath: a shared connection that is kept would hold our end of the streams open, after the job's
OPTIONS = {
    "BatchMode": "yes", "ConnectTimeout": "10", "ServerAliveInterval": "15", "ServerAliveCountMax": "4",
    "ControlMaster": "no", "ControlPath": "none",
}  # fmt: skip


class SshLauncher:
    """Runs jobs on several hosts, each over a connection of its own, under a supervisor here."""

    def render(self, submission: Submission) -> Mapping[str, str]:
        """For each host the command that leads there, and the order that it is given."""
        nodes = [_node(submission, index, host) for index, host in enumerate(submission.launch.names)]
        return detached.plan_of(nodes, list(submission.files))

    def check(self, submission: Submission) -> None:
        """Every host can be reached and could run the job; UserError with each that cannot."""
        launch: SshConfig = submission.launch
        python, addresses = launch.python or sys.executable, list(map(address_of, launch.names))
        asked = []
        for index, host in enumerate(launch.names):
            port = launch.port if index == 0 else 0
            line = reach.remote(folder_of(submission), python, addresses, port)
            asked.append(reach.Asked(host, ssh(launch, host, line), port))
        reach.check(asked)

    def submit(self, submission: Submission) -> Submitted:
        """The hosts run it."""
        return detached.start(submission)

    def status(self, submitted: Submitted) -> JobStatus:
        """Where it is."""
        return detached.status(submitted)

    def logs(self, submitted: Submitted, *, follow: bool) -> Iterator[str]:
        """What its hosts print."""
        return detached.logs(submitted, follow=follow)

    def cancel(self, submitted: Submitted) -> None:
        """It was asked to stop."""
        detached.cancel(submitted)


def address_of(host: str) -> str:
    """The host as the other ones know it: without the user."""
    return host.rpartition("@")[2]


def folder_of(submission: Submission) -> str:
    """Where the job is run on each host; a relative one begins in the user's home there."""
    folder: str = submission.launch.folder or str(submission.folder.parents[2])
    return "." if folder == "~" else folder.removeprefix("~/")


def ssh(launch: SshConfig, host: str, remote: str) -> list[str]:
    """The command that runs the line `remote` on the host."""
    config = [] if launch.config is None else ["-F", os.path.expanduser(launch.config)]
    options = [word for name, value in OPTIONS.items() for word in ("-o", f"{name}={value}")]
    return ["ssh", "-T", *config, *options, "--", host, remote]


def _node(submission: Submission, index: int, host: str) -> dict[str, object]:
    launch: SshConfig = submission.launch
    python = launch.python or sys.executable
    addresses = [address_of(name) for name in launch.names]
    folder = f"{NODES}/{submission.name}-{index}"
    order = {
        "folder": folder,
        "environment": {
            place.HOSTS: ",".join(addresses), place.NODE: str(index), place.AT_PORT: str(launch.port),
        },
        "command": [*submission.command(python, folder), detached.settings(launch, hosts=addresses, port=launch.port)],
    }  # fmt: skip
    remote = f"cd {shlex.quote(folder_of(submission))} && exec {shlex.quote(python)} -m velocity.launch.host"
    return detached.node_of(address_of(host), ssh(launch, host, remote), order)
