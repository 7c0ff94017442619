"""From a job file to a run: planned, checked, started, concluded. Here planner, launch and the tasks meet."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from velocity.checkpoints import restore, store
from velocity.checkpoints.commit import committed, damage, step_of
from velocity.checkpoints.mirror import FINISH_SECONDS, Mirror
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
from velocity.runs.restarts import Restarts
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
    roomier: Callable[[Any, Hardware, Path], str | None] = lambda *given: None  # what to set where memory was full
    thrifty: Callable[[Any], bool] = lambda job: False  # trades speed for memory
    check_installed: Callable[[Any], None] = lambda job: None  # UserError where a package is missing
    check_mirror: Callable[..., None] = lambda job, *, fresh: None  # UserError where it cannot be used
    send_rest: Callable[[Any], None] = lambda job: None  # what of a complete run is not elsewhere yet
    fetch: Callable[[Any, Path], object] = lambda job, folder: None  # what an earlier attempt left elsewhere


def _spread(job: TrainingJob) -> str:
    return job.strategy.describe()


def _packages(job: TrainingJob) -> None:
    check_installed(job.tracking)
    training.check_installed(job.optimizer)
    if job.checkpoint.mirror is not None:
        store.check_installed(job.checkpoint.mirror)


def _mirror(job: TrainingJob, *, fresh: bool) -> None:
    if job.checkpoint.mirror is not None and (fresh or not committed(RunFolder(job.output).checkpoints)):
        restore.check(job.checkpoint.mirror, fresh=fresh)


def _rest_to_mirror(job: TrainingJob) -> None:
    """The mirror has the end of a complete run, though that was killed while it sent it."""
    run = RunFolder(job.output)
    if job.checkpoint.mirror is not None and any(run.checkpoints.glob(".mirror.*")):
        say(f"sending the end of {run.path} to {job.checkpoint.mirror} …")
        Mirror(job.checkpoint.mirror, run.path, first=True).finish(FINISH_SECONDS)


def _from_mirror(job: TrainingJob, folder: Path) -> None:
    if job.checkpoint.mirror is not None:
        whole = (one for one in committed(folder / "checkpoints") if damage(one, sizes_only=True) is None)
        restore.restore(job.checkpoint.mirror, folder, have=max(map(step_of, whole), default=-1))


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
        thriftier=training_plan.thriftier, roomier=training_plan.roomier, check_installed=_packages,
        check_mirror=_mirror, send_rest=_rest_to_mirror, fetch=_from_mirror,
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
            family_of(loaded.job).check_mirror(loaded.job, fresh=fresh)
    for resolved, model_folder in map(resolve_ahead, with_earlier(loaded_jobs)):
        with placed(resolved.origins):
            family_of(resolved.job).prepare(resolved.job, model_folder, progress_line())


def run_one(loaded: AnyLoaded, *, fresh: bool, started: float | None = None) -> bool:
    """The job is done: a rank a process did it. Nothing happens where it was done before.

    `started` is when the clock of its `duration.wall_clock` began, in seconds since 1970: now if left out. True where
    we were asked to stop meanwhile, and the job was done before it could.
    """
    started = time.time() if started is None else started
    resolved, model_folder = resolve(loaded)
    job, family = resolved.job, family_of(resolved.job)
    with RunFolder(job.output).owned():
        with placed(resolved.origins):
            family.check_installed(job)
            check_startable(resolved, fresh=fresh)
            inputs = family.prepare(job, model_folder, progress_line())
        if is_complete(resolved, inputs.hash) and not fresh:
            family.send_rest(job)
            say(f"{job.output} is complete: the same job with the same inputs; nothing to do")
            return False
        return _attempts(loaded, resolved, inputs, model_folder, fresh=fresh, started=started)


def _attempts(
    loaded: AnyLoaded, resolved: AnyLoaded, inputs: Inputs, model_folder: Path, *, fresh: bool, started: float
) -> bool:
    """The job is done: started again where a rank was lost, and once with a thriftier plan where memory ran out.

    True where we were asked to stop meanwhile.
    """
    folder, restarts = RunFolder(resolved.job.output), Restarts(resolved.job.launch.max_restarts)
    asked, thriftier_next = loaded, True
    while True:
        ended = _attempt(resolved, asked, inputs, model_folder, fresh=fresh, started=started)
        fresh = False
        try:
            conclude(folder, ended.status, asked=ended.asked)
        except MemoryFull as error:
            thriftier = _thriftier(loaded, model_folder) if thriftier_next else None
            if thriftier is None:
                raise _remedied(error, resolved, model_folder) from None
            say(f"{str(error).splitlines()[0]}; once more, with a thriftier plan")
            resolved, asked, thriftier_next = thriftier, thriftier, False
        except JobError:
            answer = restarts.after(failure.cause(folder.failures))
            if ended.asked:
                raise
            if answer.said:
                say(answer.said)
            if not answer.again:
                raise
            failure.set_aside(folder.failures, f"attempt-{restarts.done}")
        else:
            return ended.asked


def _attempt(
    resolved: AnyLoaded, asked: AnyLoaded, inputs: Inputs, model_folder: Path, *, fresh: bool, started: float
) -> local.Ended:
    """The job was started as resolved, and has ended; the run folder says what made the planner choose so."""
    job, family, hardware = resolved.job, family_of(resolved.job), _machine()
    folder = claim(resolved, inputs.manifest(job), hardware.describe(), fresh=fresh)
    folder.set_status("running", started=started)
    if not fresh:
        family.fetch(job, folder.path)
    write_atomically(folder.plan, json.dumps(family.explain(asked, hardware, model_folder), indent=1) + "\n")
    count = int(job.launch.processes)
    say(f"{resolved.path}: {job.task} on {count} process(es), {family.summary(job)} → {folder.path}")
    added = local.environment(count, hardware.cores, gpus=bool(hardware.gpus), thrifty=family.thrifty(job))
    return local.run(local.render(family.module, folder.path, folder.failures, count), added)


def _thriftier(loaded: AnyLoaded, model_folder: Path) -> AnyLoaded | None:
    """The plan to try once where memory ran out in the first steps; None where it ran out later, or nothing is left."""
    if sum("loss" in line for line in RunFolder(loaded.job.output).lines()) >= PROBE_STEPS:
        return None
    return family_of(loaded.job).thriftier(loaded, _machine(), model_folder)


def _remedied(error: MemoryFull, resolved: AnyLoaded, model_folder: Path) -> MemoryFull:
    """The error; its fix is what the planner says would fit, where it can."""
    fix = family_of(resolved.job).roomier(resolved, _machine(), model_folder)
    if fix is None:
        return error
    what, where = [*str(error).splitlines(), ""][:2]
    remedied = MemoryFull(what, where.removeprefix("  where: "), fix)
    remedied.trace = error.trace
    return remedied


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
