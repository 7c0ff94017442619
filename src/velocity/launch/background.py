"""This machine, without a terminal: `velocity run` goes on after the command that sent it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping

from velocity.errors import UserError
from velocity.launch import detached
from velocity.launch.launcher import JobStatus, Submission, Submitted
from velocity.runs.folder import RunFolder


class LocalLauncher:
    """Runs jobs here, one after the other, under a supervisor."""

    def render(self, submission: Submission) -> Mapping[str, str]:
        """The command that is run."""
        files = [str(submission.folder / name) for name in submission.files]
        command = [sys.executable, "-m", "velocity", "run", *files, *submission.overrides]
        command.append(detached.settings(submission.launch))
        order = {"folder": str(submission.folder), "environment": {}, "command": command}
        host = [sys.executable, "-m", "velocity.launch.host"]
        return detached.plan_of([detached.node_of("here", host, order)], [])

    def check(self, submission: Submission) -> None:
        """Nothing; UserError where another process writes an output folder of the jobs."""
        for job in submission.jobs:
            if RunFolder(job.output).is_held():
                raise UserError("the run folder is held by another process", job.output, "wait for it, or stop it")

    def submit(self, submission: Submission) -> Submitted:
        """The jobs run."""
        return detached.start(submission)

    def status(self, submitted: Submitted) -> JobStatus:
        """Where they are."""
        return detached.status(submitted)

    def logs(self, submitted: Submitted, *, follow: bool) -> Iterator[str]:
        """What they print."""
        return detached.logs(submitted, follow=follow)

    def cancel(self, submitted: Submitted) -> None:
        """They were asked to stop."""
        detached.cancel(submitted)
