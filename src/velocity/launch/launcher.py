"""What every target can do with a job, and what is told of one that was sent there. It knows no target by name.

A job is rendered (pure: all that would be sent, as text), checked, submitted; then it has a status and logs, and can be
cancelled. What was submitted lies in a folder of its own, so that any later command finds it.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from velocity.config.job import Job

State = Literal["waiting", "running", "complete", "interrupted", "failed", "cancelled", "unknown"]
OVER: tuple[State, ...] = ("complete", "interrupted", "failed", "cancelled")


@dataclass(frozen=True)
class Submission:
    """Jobs of one call on their way to a target. All of them have the launch section of the first."""

    name: str  # such as sft-1125-221503: lower case, digits and hyphens, at most 40 of them
    folder: Path  # absolute; what is rendered is written here
    jobs: Sequence[Job]
    files: Mapping[str, str]  # name in the folder → text, of each job file, in their order
    overrides: Sequence[str] = ()  # as they stood on the command line
    fresh: bool = False  # an older run does not count, wherever it lies

    @property
    def launch(self) -> Any:
        """The launch section of all its jobs."""
        return self.jobs[0].launch

    def command(self, python: str, folder: str | None = None) -> list[str]:
        """What every node runs, with its job files in that `folder`; its own, if left out."""
        files = [f"{self.folder if folder is None else folder}/{name}" for name in self.files]
        return [python, "-m", "velocity", "node", self.launch.kind, *files, *self.overrides]


@dataclass(frozen=True)
class Submitted:
    """A submission that was sent: the target's own `id` of it, and what its launcher needs to find it again."""

    name: str
    kind: str
    id: str
    folder: Path
    outputs: Sequence[str]  # of its jobs, as they stand in the files
    time: float  # seconds since 1970
    facts: Mapping[str, Any] = field(default_factory=dict)
    mirrors: Sequence[str | None] = ()  # of its jobs, in the order of the outputs


@dataclass(frozen=True)
class JobStatus:
    """Where a submitted job is; once it is over, its exit status (0, 1, 2, 75) and why it is not 0."""

    state: State
    exit_status: int | None = None
    why: str = ""

    @property
    def over(self) -> bool:
        """True where it will not change any more."""
        return self.state in OVER


class Launcher(Protocol):
    """One target. Every method but `render` may raise UserError, or JobError where the target does not answer."""

    def render(self, submission: Submission) -> Mapping[str, str]:
        """All that would be submitted, as texts by file name. Pure: it reads no file and asks nobody."""
        ...

    def check(self, submission: Submission) -> None:
        """Nothing, or UserError for what would fail later: before anything is sent, or costs money."""
        ...

    def submit(self, submission: Submission) -> Submitted:
        """It was sent. What was rendered lies in the submission's folder already."""
        ...

    def status(self, submitted: Submitted) -> JobStatus:
        """Where it is now."""
        ...

    def logs(self, submitted: Submitted, *, follow: bool) -> Iterator[str]:
        """Its lines so far, without line ends; with `follow` also those to come, until it is over."""
        ...

    def cancel(self, submitted: Submitted) -> None:
        """It was asked to stop: it saves, and ends. Nothing where it is over."""
        ...


def state_of(exit_status: int) -> State:
    """What an exit status of a job means."""
    return {0: "complete", 75: "interrupted"}.get(exit_status, "failed")  # type: ignore[return-value]


def shell(command: Sequence[str]) -> str:
    """The command as a line for a shell."""
    return shlex.join(command)
