"""What jobs of one class have of their own: their plan, their inputs, their ranks' module, their mirror."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from velocity.checkpoints import restore, store
from velocity.checkpoints.commit import committed, damage, step_of
from velocity.checkpoints.mirror import FINISH_SECONDS, Mirror
from velocity.config.evaluate import EvaluateJob
from velocity.config.generate import GenerateJob
from velocity.config.inference import InferenceJob
from velocity.config.job import Job, LoadedJob
from velocity.config.load import TASKS
from velocity.config.training import TrainingJob
from velocity.evaluation import setup as evaluation
from velocity.inference import setup as inference
from velocity.inference.mirror import is_finished, send_result
from velocity.planner import generation, table
from velocity.planner import inference as inference_plan
from velocity.planner import plan as training_plan
from velocity.planner.machines import Cluster
from velocity.runs.claim import Manifest
from velocity.runs.folder import RunFolder
from velocity.terminal import say
from velocity.training import setup as training
from velocity.training.callbacks.build import check_installed
from velocity.training.retention import Retention, judged_by

AnyLoaded: TypeAlias = LoadedJob[Any]


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
    plan: Callable[[Any, Cluster, Path], AnyLoaded]
    prepare: Callable[[Any, Path, Callable[[str], None]], Inputs]
    summary: Callable[[Any], str]
    explain: Callable[[Any, Cluster, Path], dict[str, Any]]  # what plan.json says of it
    thriftier: Callable[[Any, Cluster, Path], AnyLoaded | None] = lambda *given: None  # the plan after that one
    roomier: Callable[[Any, Cluster, Path], str | None] = lambda *given: None  # what to set where memory was full
    thrifty: Callable[[Any], bool] = lambda job: False  # trades speed for memory
    check_installed: Callable[[Any], None] = lambda job: None  # UserError where a package is missing
    check_mirror: Callable[..., None] = lambda job, *, fresh: None  # UserError where it cannot be used
    send_rest: Callable[[Any], None] = lambda job: None  # what of a complete run is not elsewhere yet
    fetch: Callable[[Any, Path], object] = lambda job, folder: None  # what an earlier attempt left elsewhere

    @property
    def check(self) -> Any:
        """The module `check` beside the ranks' one: it needs what they need, so it is imported when asked for."""
        return importlib.import_module(f"{self.module.rpartition('.')[0]}.check")


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
        kept = Retention(job.checkpoint, judged_by(run, job.checkpoint)).kept
        Mirror(job.checkpoint.mirror, run.path, first=True, kept=kept).finish(FINISH_SECONDS)


def _from_mirror(job: TrainingJob, folder: Path) -> None:
    if job.checkpoint.mirror is not None:
        whole = (one for one in committed(folder / "checkpoints") if damage(one, sizes_only=True) is None)
        restore.restore(job.checkpoint.mirror, folder, have=max(map(step_of, whole), default=-1))


def _rows_mirror(job: InferenceJob, *, fresh: bool) -> None:
    if job.checkpoint.mirror is not None and (fresh or not RunFolder(job.output).shards.is_dir()):
        restore.check(job.checkpoint.mirror, fresh=fresh)


def _mirror_package(job: InferenceJob) -> None:
    if job.checkpoint.mirror is not None:
        store.check_installed(job.checkpoint.mirror)


def _measuring_packages(job: EvaluateJob) -> None:
    _mirror_package(job)
    evaluation.check_installed(job)


def _rows_to_mirror(job: InferenceJob) -> None:
    """The mirror has the result of a complete run, though that was killed before it had sent it."""
    if job.checkpoint.mirror is not None and not is_finished(job.checkpoint.mirror):
        send_result(job.checkpoint.mirror, RunFolder(job.output).path)


def _rows_from_mirror(job: InferenceJob, folder: Path) -> None:
    if job.checkpoint.mirror is not None:
        restore.fetch_shards(job.checkpoint.mirror, folder)


def _engine(job: InferenceJob) -> str:
    return f"engine {job.generation.engine}, {job.strategy.precision}"


def _streams(job: InferenceJob) -> bool:
    return job.strategy.offload.parameters != "none"


def _training_explained(loaded: LoadedJob[TrainingJob], cluster: Cluster, folder: Path) -> dict[str, Any]:
    return table.describe(training_plan.plan_job(loaded, cluster, folder))


def _inference_explained(loaded: LoadedJob[InferenceJob], cluster: Cluster, folder: Path) -> dict[str, Any]:
    return generation.describe(generation.plans(loaded, cluster, folder), cluster)


FAMILIES: Mapping[type[Job], Family] = {
    TrainingJob: Family(
        "velocity.training.run", training_plan.resolve, training.prepare_inputs, _spread, _training_explained,
        thriftier=training_plan.thriftier, roomier=training_plan.roomier, check_installed=_packages,
        check_mirror=_mirror, send_rest=_rest_to_mirror, fetch=_from_mirror,
    ),
    GenerateJob: Family(
        "velocity.inference.run", inference_plan.resolve, inference.prepare_inputs, _engine, _inference_explained,
        thrifty=_streams, check_installed=_mirror_package, check_mirror=_rows_mirror,
        send_rest=_rows_to_mirror, fetch=_rows_from_mirror,
    ),
    EvaluateJob: Family(
        "velocity.evaluation.run", inference_plan.resolve, evaluation.prepare_inputs, _engine, _inference_explained,
        thrifty=_streams, check_installed=_measuring_packages, check_mirror=_rows_mirror,
        send_rest=_rows_to_mirror, fetch=_rows_from_mirror,
    ),
}  # fmt: skip


def family_of(job: Job) -> Family:
    """What belongs to the job's class."""
    return FAMILIES[TASKS[job.task]]
