"""The way to hosts by ssh: a connection each, over which a job is sent, watched and stopped."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence

from velocity.config.ssh import SshConfig
from velocity.launch import place
from velocity.launch.launcher import Submission
from velocity.launch.supervised import reach
from velocity.launch.supervised.way import Host, settings

NODES = ".velocity/nodes"  # where on a host the job's files lie while it runs
# ControlPath: a shared connection that is kept would hold our end of the streams open, after the job's
OPTIONS = {
    "BatchMode": "yes", "ConnectTimeout": "10", "ServerAliveInterval": "15", "ServerAliveCountMax": "4",
    "ControlMaster": "no", "ControlPath": "none",
}  # fmt: skip


class Ssh:
    """Several hosts run the jobs together."""

    sends = True

    def hosts(self, submission: Submission) -> Sequence[Host]:
        """Each with the command that leads there, and the order that it is given."""
        return [_host(submission, index, name) for index, name in enumerate(submission.launch.names)]

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


def _host(submission: Submission, index: int, name: str) -> Host:
    launch: SshConfig = submission.launch
    python = launch.python or sys.executable
    addresses = [address_of(one) for one in launch.names]
    folder = f"{NODES}/{submission.name}-{index}"
    order = {
        "folder": folder,
        "environment": {
            place.HOSTS: ",".join(addresses), place.NODE: str(index), place.AT_PORT: str(launch.port),
        },
        "command": [*submission.command(python, folder), settings(launch, hosts=addresses, port=launch.port)],
    }  # fmt: skip
    there = f"cd {shlex.quote(folder_of(submission))} && exec {shlex.quote(python)} -m velocity.launch.supervised.host"
    return Host(address_of(name), ssh(launch, name, there), order)
