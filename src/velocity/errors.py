"""What Velocity says when something is wrong: what, where, what to do. It knows no other module."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, in at most three lines: what, where (file, line, field), what to do."""

    what: str
    where: str = ""
    fix: str = ""

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  fix:   {self.fix}")
        return "\n".join(lines)


class VelocityError(Exception):
    """An error that is shown to the user without a traceback; `exit_status` becomes the command's."""

    exit_status = 1
    trace = ""  # of the process where it happened, if that is another one

    def __init__(self, what: str | Sequence[Problem], where: str = "", fix: str = "") -> None:
        self.problems = (Problem(what, where, fix),) if isinstance(what, str) else tuple(what)
        super().__init__("\n".join(map(str, self.problems)))


class UserError(VelocityError):
    """The user's input is wrong (job file, data, arguments): nothing was started. Exit status 2."""

    exit_status = 2


class JobError(VelocityError):
    """The job was started and failed. Exit status 1."""


class MemoryFull(JobError):
    """A device or the host had no memory left; a thriftier strategy may do. Exit status 1."""


class InterruptedRun(VelocityError):
    """The run was stopped and can be resumed. Exit status 75 (EX_TEMPFAIL of sysexits.h)."""

    exit_status = 75


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def from_system(error: OSError, process: str = "") -> JobError:
    """What the system refused, where (the path, and the process where it is not the command's), and what to do."""
    if not error.errno:  # a library's own, of a connection or an answer: it says itself what went wrong
        return JobError(f"{type(error).__name__}: {error}", process, "--debug shows the traceback")
    what = os.strerror(error.errno)
    full = error.errno in FULL
    fix = "free space, or set another output and data.cache" if full else "check the path and its rights"
    where = ", ".join(filter(None, [str(error.filename or "standard output"), process]))
    return JobError(what, where, fix)


def shown(error: BaseException) -> VelocityError:
    """What the user is told of an error that ends a command."""
    if isinstance(error, VelocityError):
        return error
    if isinstance(error, OSError):
        return from_system(error)
    if isinstance(error, KeyboardInterrupt):
        return InterruptedRun("stopped before the first step", fix="run the same command to go on")
    what = f"{type(error).__name__}: {error}"
    return JobError(what, "a defect of Velocity", "--debug shows the traceback; please report it")
