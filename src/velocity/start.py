"""From a job file to a run: planned, checked, started, concluded. Here planner, launch and training meet."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from velocity.config.job import Job, LoadedJob, placed
from velocity.distributed import failure
from velocity.errors import InterruptedRun, JobError
from velocity.launch import local
from velocity.models.locate import locate
from velocity.planner.hardware import detect
from velocity.planner.plan import resolve as plan
from velocity.terminal import progress_line, say
from velocity.training.chain import model_ahead
from velocity.training.export import merge_ahead
from velocity.training.run_folder import RunFolder
from velocity.training.setup import check_startable, claim, is_complete, prepare_inputs

Resolved: TypeAlias = tuple[LoadedJob, Path, dict[str, Any]]  # the job, its model's folder, this machine


def with_earlier(loaded_jobs: Sequence[LoadedJob]) -> Iterator[tuple[LoadedJob, list[Job]]]:
    """Each job with those that come before it in the same call."""
    for number, loaded in enumerate(loaded_jobs):
        yield loaded, [earlier.job for earlier in loaded_jobs[:number]]


def resolve_ahead(of: tuple[LoadedJob, list[Job]]) -> Resolved:
    """The same as `resolve` before the earlier jobs have run, and without the weights of a hub model."""
    loaded, earlier = of
    with placed(loaded.origins):
        job, folder = model_ahead(loaded.job, earlier, weights=False)
    return resolve(replace(loaded, job=job), folder)


def resolve(loaded: LoadedJob, model_folder: Path | None = None) -> Resolved:
    """The job without any `auto`, its model's folder, and this machine."""
    hardware = detect(local.visible_gpus())
    with placed(loaded.origins):
        if model_folder is None:
            merge_ahead(loaded.job.model.path)
        folder = model_folder or locate(loaded.job.model)
        return plan(loaded, hardware, folder), folder, hardware.describe()


def check_ahead(loaded_jobs: Sequence[LoadedJob], *, fresh: bool) -> None:
    """Nothing, or UserError for what would end a later job: better now than after the hours of the first one."""
    for loaded in loaded_jobs:
        with placed(loaded.origins):
            check_startable(loaded, fresh=fresh)
    for resolved, model_folder, _ in map(resolve_ahead, with_earlier(loaded_jobs)):
        with placed(resolved.origins):
            prepare_inputs(resolved.job, model_folder, progress_line())


def run_one(loaded: LoadedJob, *, fresh: bool) -> None:
    """The job is done: a rank a process trained it. Nothing happens where it was done before."""
    resolved, model_folder, hardware = resolve(loaded)
    with RunFolder(resolved.job.output).owned():
        with placed(resolved.origins):
            check_startable(resolved, fresh=fresh)
            inputs = prepare_inputs(resolved.job, model_folder, progress_line())
        if is_complete(resolved, inputs) and not fresh:
            say(f"{resolved.job.output} is complete: the same job with the same inputs; nothing to do")
            return
        folder = claim(resolved, inputs, hardware, fresh=fresh)
        count = int(resolved.job.launch.processes)
        say(f"{loaded.path}: {resolved.job.task} on {count} process(es), ZeRO {resolved.job.strategy.zero}, "
             f"{resolved.job.strategy.precision} → {folder.path}")  # fmt: skip
        added = local.environment(count, hardware["cores"], gpus=bool(hardware["gpus"]))
        conclude(folder, local.run(local.render(folder.path, folder.failures, count), added))


def conclude(folder: RunFolder, exit_status: int) -> None:
    """Nothing where the run is complete; else the error that says why not."""
    status = folder.status()
    if exit_status == 0 and status["state"] == "complete":
        say(f"done: {folder.model}")
        return
    if status["state"] == "interrupted":
        raise InterruptedRun(status["why"])
    if exit_status == InterruptedRun.exit_status:
        why = "stopped before it could save"
        folder.set_status("interrupted", why=why)
        raise InterruptedRun(why, str(folder.path), "run the same command to go on from the last checkpoint")
    cause = failure.cause(folder.failures)
    with contextlib.suppress(OSError):  # the disk may be full, which is what we are about to say
        folder.set_status("failed", cause=cause and cause["what"])
    if cause is None:
        raise JobError(
            f"the job ended with status {exit_status}, and no rank could say why", str(folder.path), "was memory short?"
        )
    error = JobError(cause["what"], "" if "where:" in cause["what"] else f"{folder.failures}")
    error.exit_status, error.trace = cause["exit_status"], cause["trace"]
    raise error
