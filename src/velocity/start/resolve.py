"""A job before it starts: settled by the planner, and refused for what would end it later."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from velocity.config.job import Job, placed
from velocity.launch import local
from velocity.models.locate import locate
from velocity.planner.hardware import Hardware, detect
from velocity.planner.machines import Cluster
from velocity.runs.chain import model_ahead
from velocity.runs.claim import check_startable
from velocity.start.families import AnyLoaded, family_of
from velocity.terminal import progress_line
from velocity.training.export import merge_ahead

Resolved: TypeAlias = tuple[AnyLoaded, Path]  # the job and its model's folder


def machine() -> Hardware:
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


def resolve(loaded: AnyLoaded, model_folder: Path | None = None, cluster: Cluster | None = None) -> Resolved:
    """The job without any `auto`, and its model's folder. Left out: for as many of this machine as it asks for."""
    with placed(loaded.origins):
        if model_folder is None:
            merge_ahead(loaded.job.model.path)
        folder = model_folder or locate(loaded.job.model)
        cluster = cluster or Cluster(machine(), loaded.job.launch.node_count)
        return family_of(loaded.job).plan(loaded, cluster, folder), folder


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
