"""One rank of a job, whatever its task: it starts with the others, can be asked to stop, and says how it ended."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from velocity.distributed import comm, failure, pulse
from velocity.distributed.comm import Ranks
from velocity.distributed.failure import Failure
from velocity.distributed.memory import is_out_of_memory
from velocity.errors import InterruptedRun, JobError, MemoryFull, VelocityError, from_system
from velocity.garbage import importing
from velocity.models.quiet import quieten
from velocity.process import die_with_parent, hear_stops, ignore_stops
from velocity.runs.folder import RunFolder
from velocity.terminal import keep_secrets


def _stop_flag() -> Callable[[], bool]:
    """True once this process was asked to stop; the trainer agrees on it with the other ranks."""
    asked: list[int] = []
    hear_stops(asked.append)
    return lambda: bool(asked)


def as_rank(folder: str, work: Callable[[RunFolder, Ranks, Callable[[], bool]], None], memory_fix: str) -> int:
    """Do the `work`, and say how it went: the exit status, and for a failure its cause in the run folder.

    `memory_fix` is what to set where memory is full.
    """
    die_with_parent()
    keep_secrets()
    quieten()
    run, ranks = RunFolder(Path(folder)), comm.from_environment()
    stopping = _stop_flag()  # first of all: a stop while the model loads is kept until the first step
    try:
        pulse.begin(run.failures, ranks.rank)
        with importing():  # deepspeed
            comm.start(ranks)
        work(run, ranks, stopping)
        comm.stop()
    except InterruptedRun as stopped:
        if ranks.first:
            run.set_status("interrupted", why=str(stopped))
        pulse.end(run.failures, well=True)
        return stopped.exit_status
    except Exception as error:
        return _failed(run, ranks, error, memory_fix)
    finally:
        ignore_stops()
    pulse.end(run.failures, well=True)
    return 0


def _failed(run: RunFolder, ranks: Ranks, error: Exception, memory_fix: str) -> int:
    """The failure lies in the run folder, or on standard error where the folder cannot be written; the exit status."""
    shown = _shown(error, pulse.where({**vars(pulse.doing()), "rank": ranks.rank, "host": pulse.host()}), memory_fix)
    trace = "" if shown is error or isinstance(shown, MemoryFull) else traceback.format_exc()
    kind = type(shown if isinstance(shown, MemoryFull) else error).__name__
    peer = failure.is_peers(error)
    try:
        number = error.errno if isinstance(error, OSError) else None
        what = Failure(str(shown), shown.exit_status, errno=number, kind=kind, trace=trace, peer=peer)
        failure.record(run.failures, ranks.rank, what)
    except OSError:
        print(f"error: {shown}", file=sys.stderr, flush=True)
    pulse.end()
    return shown.exit_status


def _shown(error: Exception, where: str, memory_fix: str) -> VelocityError:
    """What the user is told of an error, in three lines."""
    if isinstance(error, VelocityError):
        return error
    if isinstance(error, OSError):
        return from_system(error, where)
    if is_out_of_memory(error):
        whose = "GPU's" if isinstance(error, torch.OutOfMemoryError) else "host's"
        return MemoryFull(f"the {whose} memory is full", where, memory_fix)
    first = next(iter(str(error).strip().splitlines()), "")
    return JobError(f"{type(error).__name__}: {first}", where, "--debug shows the traceback")
