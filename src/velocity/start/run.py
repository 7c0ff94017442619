"""A job is run: claimed, started, started again where that helps, concluded. Every node of it runs these lines.

Where there are several, the first one decides, and writes the run folder unless each node has a disk of its own.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from velocity.checkpoints.results import fetch_result
from velocity.config.base import Mark
from velocity.config.job import placed
from velocity.config.load import job_of
from velocity.distributed import failure
from velocity.errors import JobError, MemoryFull, UserError, VelocityError
from velocity.files import write_atomically
from velocity.launch import local
from velocity.planner.machines import Cluster
from velocity.report.write import report_end
from velocity.runs.claim import check_startable, claim, is_complete
from velocity.runs.folder import RunFolder
from velocity.runs.prediction import PROBE_STEPS
from velocity.runs.restarts import Restarts
from velocity.start.crew import Alone, Crew, Work
from velocity.start.families import AnyLoaded, Inputs, family_of
from velocity.start.resolve import check_ahead, machine, resolve
from velocity.start.verdict import conclude, remedied
from velocity.terminal import progress_line, say


@dataclass(frozen=True)
class Start:
    """What an attempt starts from. `asked` is the job before the planner; `started` is in seconds since 1970."""

    asked: AnyLoaded
    resolved: AnyLoaded
    inputs: Inputs
    cluster: Cluster
    model_folder: Path
    fresh: bool
    started: float


def run_all(loaded_jobs: Sequence[AnyLoaded], *, fresh: bool, started: float | None, crew: Crew | None = None) -> None:
    """All of them are done, in order; KeyboardInterrupt where we were asked to stop, and one is left."""
    crew = crew or Alone()
    if len(loaded_jobs) > 1:
        crew.each(lambda: check_ahead(loaded_jobs, fresh=fresh))
    for number, loaded in enumerate(loaded_jobs, 1):
        asked = run_one(loaded, fresh=fresh, started=started, crew=crew)
        if asked and number < len(loaded_jobs):
            raise KeyboardInterrupt
        started = None  # the next one's clock begins with it


def run_one(loaded: AnyLoaded, *, fresh: bool, started: float | None = None, crew: Crew | None = None) -> bool:
    """The job is done: a rank a process did it. Nothing happens where it was done before.

    `started` is when the clock of its `duration.wall_clock` began, in seconds since 1970: now if left out. `crew`: this
    machine alone if left out. True where we were asked to stop meanwhile, and the job was done before it could.
    """
    started = time.time() if started is None else started
    crew = crew or Alone()
    hardware = machine()
    crew.same("the hardware", {"gpus": hardware.gpus, "bf16": hardware.bf16})
    cluster = Cluster(hardware, crew.count)
    resolved, model_folder = crew.each(lambda: resolve(loaded, cluster=cluster))
    resolved = _as_the_first(resolved, crew)
    job, family = resolved.job, family_of(resolved.job)
    run = RunFolder(job.output)
    with contextlib.ExitStack() as held:
        crew.from_first(lambda: held.enter_context(run.owned()))
        crew.look_at(run.path)
        _check_disks(job, crew)
        if crew.private:
            crew.each(lambda: None if crew.first else held.enter_context(run.owned()))
        with placed(resolved.origins):
            crew.each(lambda: family.check_installed(job))
            crew.each(lambda: check_startable(resolved, fresh=fresh))
            inputs = crew.each(lambda: family.prepare(job, model_folder, progress_line()))
        crew.same("the content of the model or of the data", inputs.hash)
        if crew.from_first(lambda: is_complete(resolved, inputs.hash) and not fresh):
            if crew.first:
                family.send_rest(job)
                say(f"{job.output} is complete: the same job with the same inputs; nothing to do")
            return False
        asked = _reported(Start(loaded, resolved, inputs, cluster, model_folder, fresh, started), crew)
        if crew.private:  # a later job may start from it, on every node
            crew.each(lambda: None if crew.first else fetch_result(job.checkpoint.mirror, run.path))
        return asked


def _as_the_first(resolved: AnyLoaded, crew: Crew) -> AnyLoaded:
    """The job as the first node's planner settled it: its calibration may be another one than ours."""
    settled = crew.from_first(lambda: resolved.job.model_dump(mode="json"))
    return resolved if crew.first else replace(resolved, job=job_of(settled, Mark("the first node")))


def _check_disks(job: Any, crew: Crew) -> None:
    """Nothing, or UserError where nodes have disks of their own, and nothing that all of them reach."""
    if crew.private and job.checkpoint.mirror is None:
        what = f"the nodes do not share {job.output}, and there is no checkpoint.mirror through which they would"
        raise UserError(what, "checkpoint.mirror", "give one, or an output folder that all nodes see")


def _reported(start: Start, crew: Crew) -> bool:
    """As `_attempts`; however the run ended, its folder has its report."""
    folder = RunFolder(start.resolved.job.output).path
    try:
        asked = _attempts(start, crew)
    except UserError:  # nothing was started, and the folder may be another job's
        raise
    except VelocityError:
        if crew.first:
            report_end(folder)
        raise
    return (crew.first and report_end(folder)) or asked


def _attempts(start: Start, crew: Crew) -> bool:
    """The job is done: started again where a rank was lost, and once with a thriftier plan where memory ran out.

    True where we were asked to stop meanwhile.
    """
    folder, restarts = RunFolder(start.resolved.job.output), Restarts(start.resolved.job.launch.max_restarts)
    thriftier_next = True
    while True:
        ended = _attempt(start, crew)
        start = replace(start, fresh=False)
        after = crew.from_first(partial(_after, start, folder, restarts, ended, may=thriftier_next))
        if after == "done":
            return ended.asked
        if after == "thriftier":
            # the first node has one; where our calibration finds none, its job replaces ours all the same
            settled = _as_the_first(_thriftier(start) or start.resolved, crew)
            start, thriftier_next = replace(start, resolved=settled, asked=settled), False


def _after(start: Start, folder: RunFolder, restarts: Restarts, ended: local.Ended, *, may: bool) -> str:
    """`done`, `again`, or `thriftier`: what follows an attempt; else the error that the job ends with.

    A thriftier plan is tried where it `may`.
    """
    try:
        conclude(folder, ended.status, asked=ended.asked)
    except MemoryFull as error:
        if not may or _thriftier(start) is None:
            raise remedied(error, start.resolved, start.cluster, start.model_folder) from None
        say(f"{str(error).splitlines()[0]}; once more, with a thriftier plan")
        return "thriftier"
    except JobError:
        answer = restarts.after(failure.cause(folder.failures))
        if ended.asked:
            raise
        if answer.said:
            say(answer.said)
        if not answer.again:
            raise
        failure.set_aside(folder.failures, f"attempt-{restarts.done}")
        return "again"
    return "done"


def _attempt(start: Start, crew: Crew) -> local.Ended:
    """The job was started as resolved, and has ended; the run folder says what made the planner choose so."""
    resolved, hardware = start.resolved, start.cluster.hardware
    job, family = resolved.job, family_of(resolved.job)
    run = RunFolder(job.output)

    def begin() -> None:
        claim(resolved, start.inputs.manifest(job), hardware.describe(), fresh=start.fresh)
        run.set_status("running", started=start.started)
        if not start.fresh:
            family.fetch(job, run.path)

    crew.from_first(begin)
    if crew.private:
        crew.each(lambda: None if crew.first else begin())
    count = int(job.launch.processes)
    if crew.first:
        explained = family.explain(start.asked, start.cluster, start.model_folder)
        write_atomically(run.plan, json.dumps(explained, indent=1) + "\n")
        nodes = f" on {crew.count} nodes" if crew.count > 1 else ""
        say(f"{resolved.path}: {job.task} on {count} process(es){nodes}, {family.summary(job)} → {run.path}")
    here = count // crew.count
    added = local.environment(here, hardware.cores, gpus=bool(hardware.gpus), thrifty=family.thrifty(job))
    return crew.run(Work(family.module, run.path, run.failures, count, added))


def _thriftier(start: Start) -> AnyLoaded | None:
    """The plan to try once where memory ran out in the first steps; None where it ran out later, or nothing is left."""
    if sum("loss" in line for line in RunFolder(start.asked.job.output).lines()) >= PROBE_STEPS:
        return None
    return family_of(start.asked.job).thriftier(start.asked, start.cluster, start.model_folder)
