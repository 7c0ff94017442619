"""How a run ended, from what its folder and its exit status say together."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

from velocity.checkpoints.commit import committed, step_of
from velocity.distributed import failure
from velocity.errors import InterruptedRun, JobError, MemoryFull
from velocity.planner.machines import Cluster
from velocity.runs.folder import RunFolder
from velocity.start.families import AnyLoaded, family_of
from velocity.terminal import say


def conclude(folder: RunFolder, exit_status: int, *, asked: bool = False) -> None:
    """Nothing where the run is complete, though we were `asked` to stop; else the error that says why not."""
    status = folder.status()
    if status["state"] == "complete" and (exit_status == 0 or asked):
        say(f"done: {folder.result}")
        return
    # where a rank was killed its node ends the others, which stop in good order: that is no interruption
    if status["state"] == "interrupted" and exit_status == InterruptedRun.exit_status:
        raise InterruptedRun(status["why"])
    if exit_status == InterruptedRun.exit_status:
        why = f"stopped before it could save; {_kept(folder)}"
        folder.set_status("interrupted", why=why)
        raise InterruptedRun(why, str(folder.path), "run the same command to go on")
    cause = failure.cause(folder.failures)
    with contextlib.suppress(OSError):  # the disk may be full, which is what we are about to say
        folder.set_status("failed", cause=cause and cause["what"])
    if cause is None:
        ended = f"was killed by {signal.Signals(-exit_status).name}" if exit_status < 0 else f"ended with {exit_status}"
        fix = "was memory short? the kernel's log says so; the same command goes on"
        raise JobError(f"the job's node process {ended}, and no rank could say why", str(folder.path), fix)
    # asked to stop, we try nothing else
    kind = MemoryFull if cause["kind"] == MemoryFull.__name__ and not asked else JobError
    error = kind(cause["what"], "" if "where:" in cause["what"] else f"{folder.failures}")
    if cause["hung"] and cause["trace"]:
        say(f"the stack of rank {cause['rank']}, the innermost call first:\n{cause['trace'].rstrip()}")
    error.exit_status = cause["exit_status"]
    error.trace = "\n".join(filter(None, [cause["trace"].rstrip(), failure.followed(folder.failures)]))
    raise error


def _kept(folder: RunFolder) -> str:
    """What a run that was cut off goes on from."""
    if whole := committed(folder.checkpoints):
        return f"the last whole checkpoint is of step {step_of(whole[-1])}"
    return "finished rows are kept" if folder.shards.is_dir() else "there is no checkpoint yet"


def remedied(error: MemoryFull, resolved: AnyLoaded, cluster: Cluster, model_folder: Path) -> MemoryFull:
    """The error; its fix is what the planner says would fit, where it can."""
    fix = family_of(resolved.job).roomier(resolved, cluster, model_folder)
    if fix is None:
        return error
    what, where = [*str(error).splitlines(), ""][:2]
    remedied = MemoryFull(what, where.removeprefix("  where: "), fix)
    remedied.trace = error.trace
    return remedied
