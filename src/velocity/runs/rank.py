"""One rank of a job, whatever its task: it starts with the others, can be asked to stop, and says how it ended."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from velocity.distributed import comm, failure
from velocity.distributed.comm import Ranks
from velocity.distributed.memory import is_out_of_memory
from velocity.errors import InterruptedRun, JobError, MemoryFull, VelocityError, from_system
from velocity.models.quiet import quieten
from velocity.process import die_with_parent
from velocity.runs.folder import RunFolder


def _stop_flag() -> Callable[[], bool]:
    """True once this process was asked to stop; the trainer agrees on it with the other ranks."""
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: asked.append(received))
    return lambda: bool(asked)


def as_rank(folder: str, work: Callable[[RunFolder, Ranks, Callable[[], bool]], None], memory_fix: str) -> int:
    """Do the `work`, and say how it went: the exit status, and for a failure its cause in the run folder.

    `memory_fix` is what to set where memory is full.
    """
    die_with_parent()
    quieten()
    run, ranks = RunFolder(Path(folder)), comm.from_environment()
    stopping = _stop_flag()  # first of all: a stop while the model loads is kept until the first step
    try:
        comm.start(ranks)
        work(run, ranks, stopping)
        comm.stop()
    except InterruptedRun as stopped:
        if ranks.first:
            run.set_status("interrupted", why=str(stopped))
        return stopped.exit_status
    except VelocityError as error:
        return _failed(run, ranks, error, "")
    except OSError as error:
        return _failed(run, ranks, from_system(error, _place(ranks)), traceback.format_exc())
    except Exception as error:
        if is_out_of_memory(error):
            whose = "GPU's" if isinstance(error, torch.OutOfMemoryError) else "host's"
            return _failed(run, ranks, MemoryFull(f"the {whose} memory is full", _place(ranks), memory_fix), "")
        what = f"{type(error).__name__}: {error}"
        shown = JobError(what, _place(ranks), "--debug shows the traceback")
        return _failed(run, ranks, shown, traceback.format_exc())
    return 0


def _place(ranks: Ranks) -> str:
    return f"rank {ranks.rank} on {failure.host()}"


def _failed(run: RunFolder, ranks: Ranks, error: VelocityError, trace: str) -> int:
    """The failure lies in the run folder, or on standard error where the folder cannot be written; the exit status."""
    try:
        kind = type(error).__name__
        failure.record(run.failures, ranks.rank, str(error), exit_status=error.exit_status, trace=trace, kind=kind)
    except OSError:
        print(f"error: {error}", file=sys.stderr, flush=True)
    return error.exit_status
