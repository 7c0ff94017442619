"""The way to this machine: `velocity run` goes on here after the command that sent it, without a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from velocity.errors import UserError
from velocity.launch.launcher import Submission
from velocity.launch.supervised.way import Host, settings
from velocity.runs.folder import RunFolder


class Here:
    """This machine runs the jobs, one after the other."""

    sends = False

    def hosts(self, submission: Submission) -> Sequence[Host]:
        """This machine."""
        files = [str(submission.folder / name) for name in submission.files]
        command = [sys.executable, "-m", "velocity", "run", *files, *submission.overrides, settings(submission.launch)]
        order = {"folder": str(submission.folder), "environment": {}, "command": command}
        return [Host("here", [sys.executable, "-m", "velocity.launch.supervised.host"], order)]

    def check(self, submission: Submission) -> None:
        """Nothing; UserError where another process writes an output folder of the jobs."""
        for job in submission.jobs:
            if RunFolder(job.output).is_held():
                raise UserError("the run folder is held by another process", job.output, "wait for it, or stop it")
