"""From a job file to a run: planned, checked, started, concluded. Here planner, launch and the tasks meet."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from velocity.config.generate import GenerateJob
from velocity.config.job import Job, LoadedJob, placed
from velocity.config.load import TASKS
from velocity.config.training import TrainingJob
from velocity.distributed import failure
from velocity.errors import InterruptedRun, JobError, MemoryFull
from velocity.files import write_atomically
from velocity.inference import setup as inference
from velocity.launch import local
from velocity.models.locate import locate
from velocity.planner import generation, table
from velocity.planner import inference as inference_plan
from velocity.planner import plan as training_plan
from velocity.planner.hardware import Hardware, detect
from velocity.planner.machines import Cluster
from velocity.runs.chain import model_ahead
from velocity.runs.claim import Manifest, check_startable, claim, is_complete
from velocity.runs.folder import RunFolder
from velocity.runs.prediction import PROBE_STEPS
from velocity.terminal import progress_line, say
from velocity.training import setup as training
from velocity.training.callbacks.build import check_installed
from velocity.training.export import merge_ahead

AnyLoaded: TypeAlias = LoadedJob[Any]
Resolved: TypeAlias = tuple[AnyLoaded, Path]  # the job and its model's folder


class Inputs(Protocol):
    """What a job reads, ready for the ranks."""

    @property
    def hash(self) -> str:
        """Changes with the content of model and data."""
        ...

    def manifest(self, job: Any) -> Manifest:
        """What of it the run folder says."""
        ...


@dataclass(frozen=True)
class Family:
    """What jobs of one class have of their own: their plan, their inputs, and the module that is one of their ranks."""

    module: str
    plan: Callable[[Any, Hardware, Path], AnyLoaded]
    prepare: Callable[[Any, Path, Callable[[str], None]], Inputs]
    summary: Callable[[Any], str]
    explain: Callable[[Any, Hardware, Path], dict[str, Any]]  # what plan.json says of it
    thriftier: Callable[[Any, Hardware, Path], AnyLoaded | None] = lambda *given: None  # the plan after that one
    thrifty: Callable[[Any], bool] = lambda job: False  # trades speed for memory
    check_installed: Callable[[Any], None] = lambda job: None  # UserError where a package is missing


def _spread(job: TrainingJob) -> str:
    return job.strategy.describe()


def _packages(job: TrainingJob) -> None:
    check_installed(job.tracking)
    training.check_installed(job.optimizer)


def _engine(job: GenerateJob) -> str:
    return f"engine {job.generation.engine}, {job.strategy.precision}"


def _streams(job: GenerateJob) -> bool:
    return job.strategy.offload.parameters != "none"


def _training_explained(loaded: LoadedJob[TrainingJob], hardware: Hardware, folder: Path) -> dict[str, Any]:
    return table.describe(training_plan.plan_job(loaded, Cluster(hardware), folder))


def _inference_explained(loaded: LoadedJob[GenerateJob], hardware: Hardware, folder: Path) -> dict[str, Any]:
    return generation.describe(generation.plans(loaded, Cluster(hardware), folder), Cluster(hardware))


FAMILIES: Mapping[type[Job], Family] = {
    TrainingJob: Family(
        "velocity.training.run", training_plan.resolve, training.prepare_inputs, _spread, _training_explained,
        thriftier=training_plan.thriftier, check_installed=_packages,
    ),
    GenerateJob: Family(
        "velocity.inference.run", inference_plan.resolve, inference.prepare_inputs, _engine, _inference_explained,
        thrifty=_streams,
    ),
}  # fmt: skip


def family_of(job: Job) -> Family:
    """What belongs to the job's class."""
    return FAMILIES[TASKS[job.task]]


def _machine() -> Hardware:
    """This machine, with the GPUs that are left to us."""
    return detect(local.visible_gpus())


def with_earlier(loaded_jobs: Sequence[AnyLoaded]) -> Iterator[tuple[AnyLoaded, list[Job]]]:
    """Each job with those that come before it in the same call."""
    for number, loaded in enumerate(loaded_jobs):
        yield loaded, [earlier.job for earlier in loaded_jobs[:number]]


def resolve_ahead(of: tuple[AnyLoaded, list[Job]]) -> Resolved:
    """The same as `resolve` before the earlier jobs have run, and without the weights of a hub model."""
    loaded, earlier = of
    with placed(loaded.origins):
        job, folder = model_ahead(loaded.job, earlier, weights=False)
    return resolve(replace(loaded, job=job), folder)


def resolve(loaded: AnyLoaded, model_folder: Path | None = None) -> Resolved:
    """The job without any `auto`, and its model's folder."""
    with placed(loaded.origins):
        if model_folder is None:
            merge_ahead(loaded.job.model.path)
        folder = model_folder or locate(loaded.job.model)
        return family_of(loaded.job).plan(loaded, _machine(), folder), folder


def check_ahead(loaded_jobs: Sequence[AnyLoaded], *, fresh: bool) -> None:
    """Nothing, or UserError for what would end a later job: better now than after the hours of the first one."""
    for loaded in loaded_jobs:
        with placed(loaded.origins):
            family_of(loaded.job).check_installed(loaded.job)
            check_startable(loaded, fresh=fresh)
    for resolved, model_folder in map(resolve_ahead, with_earlier(loaded_jobs)):
        with placed(resolved.origins):
            family_of(resolved.job).prepare(resolved.job, model_folder, progress_line())


def run_one(loaded: AnyLoaded, *, fresh: bool) -> None:
    """The job is done: a rank a process did it. Nothing happens where it was done before."""
    resolved, model_folder = resolve(loaded)
    job, family = resolved.job, family_of(resolved.job)
    with RunFolder(job.output).owned():
        with placed(resolved.origins):
            family.check_installed(job)
            check_startable(resolved, fresh=fresh)
            inputs = family.prepare(job, model_folder, progress_line())
        if is_complete(resolved, inputs.hash) and not fresh:
            say(f"{job.output} is complete: the same job with the same inputs; nothing to do")
            return
        try:
            _attempt(resolved, loaded, inputs, model_folder, fresh=fresh)
        except MemoryFull as error:
            thriftier = _thriftier(loaded, model_folder)
            if thriftier is None:
                raise
            say(f"{str(error).splitlines()[0]}; once more, with a thriftier plan")
            _attempt(thriftier, thriftier, inputs, model_folder, fresh=False)


def _attempt(resolved: AnyLoaded, asked: AnyLoaded, inputs: Inputs, model_folder: Path, *, fresh: bool) -> None:
    """The job is done as resolved; the run folder says what of what was asked made the planner choose so."""
    job, family, hardware = resolved.job, family_of(resolved.job), _machine()
    folder = claim(resolved, inputs.manifest(job), hardware.describe(), fresh=fresh)
    write_atomically(folder.plan, json.dumps(family.explain(asked, hardware, model_folder), indent=1) + "\n")
    count = int(job.launch.processes)
    say(f"{resolved.path}: {job.task} on {count} process(es), {family.summary(job)} → {folder.path}")
    added = local.environment(count, hardware.cores, gpus=bool(hardware.gpus), thrifty=family.thrifty(job))
    conclude(folder, local.run(local.render(family.module, folder.path, folder.failures, count), added))


def _thriftier(loaded: AnyLoaded, model_folder: Path) -> AnyLoaded | None:
    """The plan to try once where memory ran out in the first steps; None where it ran out later, or nothing is left."""
    if sum("loss" in line for line in RunFolder(loaded.job.output).lines()) >= PROBE_STEPS:
        return None
    return family_of(loaded.job).thriftier(loaded, _machine(), model_folder)


def conclude(folder: RunFolder, exit_status: int) -> None:
    """Nothing where the run is complete; else the error that says why not."""
    status = folder.status()
    if exit_status == 0 and status["state"] == "complete":
        say(f"done: {folder.result}")
        return
    # where a rank was killed its node ends the others, which stop in good order: that is no interruption
    if status["state"] == "interrupted" and exit_status == InterruptedRun.exit_status:
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
    kind = MemoryFull if cause["kind"] == MemoryFull.__name__ else JobError
    error = kind(cause["what"], "" if "where:" in cause["what"] else f"{folder.failures}")
    error.exit_status, error.trace = cause["exit_status"], cause["trace"]
    raise error
