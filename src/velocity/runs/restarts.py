"""Whether a job that failed starts again by itself, from its last checkpoint. It knows no launcher and no task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from velocity.distributed.meeting import LostHost
from velocity.errors import FULL, JobError, MemoryFull, UserError

# What fails once more in the same way: said on purpose, by us, of settings, data or memory, or of a host that is gone.
FOR_GOOD = (JobError.__name__, MemoryFull.__name__, UserError.__name__, LostHost.__name__)


@dataclass(frozen=True)
class Answer:
    """Whether to start again, and what is said of it; nothing where no restart was asked for."""

    again: bool
    said: str = ""


class Restarts:
    """Counts them, and knows what the attempt before failed of."""

    def __init__(self, most: int) -> None:
        self.most, self.done = most, 0
        self._last: tuple[Any, ...] | None = None

    def after(self, cause: Mapping[str, Any] | None) -> Answer:
        """The answer to a failure; `cause` is None where no rank could say why."""
        if self.most == 0:
            return Answer(False)
        cause = cause or {"what": "no rank could say why", "step": None, "exit_status": 1, "kind": ""}
        if cause["exit_status"] == UserError.exit_status or cause["kind"] in FOR_GOOD or cause.get("errno") in FULL:
            return Answer(False, "not started again: it would fail in the same way")
        this = (cause["step"], cause["what"].splitlines()[0])
        if this == self._last:
            when = "before the first step" if cause["step"] is None else f"at step {cause['step']}"
            return Answer(False, f"not started again: it failed twice of the same, {when}")
        self._last = this
        if self.done >= self.most:
            return Answer(False, f"not started again: launch.max_restarts={self.most} is used up")
        self.done += 1
        what, where = [*str(cause["what"]).splitlines(), ""][:2]
        place = where.removeprefix("  where: ")
        said = f"{what} ({place})" if place else what
        return Answer(True, f"{said}; restart {self.done} of {self.most}, from the last checkpoint")
