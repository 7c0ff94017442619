"""Jobs of one call, of which a later one may start from an earlier one's output, which is not there yet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from velocity.config.job import Job
from velocity.config.load import read_resolved
from velocity.config.resolved import is_resolved
from velocity.models.locate import is_adapter, locate
from velocity.runs.folder import RunFolder

AnyJob = TypeVar("AnyJob", bound=Job)


def model_ahead(job: AnyJob, earlier: Sequence[Job], *, weights: bool) -> tuple[AnyJob, Path]:
    """The job, and the folder whose tokenizer and shape its model will have.

    Where `model` is the output of one of the `earlier` jobs, and not there yet, or of a run whose adapter is not merged
    yet, that is the folder which that job starts from, and the job takes over its chat template: a run saves it with
    its model.
    """
    run = RunFolder(job.model.path)
    for number in reversed(range(len(earlier))):
        other = earlier[number]
        if RunFolder(other.output).path.absolute() == run.path.absolute() and not run.model.is_dir():
            made, folder = model_ahead(other, earlier[:number], weights=weights)
            return _with_template(job, job.data.chat_template or made.data.chat_template), folder
    if is_resolved(run.job) and is_adapter(run.model) and not run.merged.is_dir():
        made, folder = model_ahead(read_resolved(run.job), (), weights=weights)
        return _with_template(job, job.data.chat_template or made.data.chat_template), folder
    return job, locate(job.model, weights=weights)


def _with_template(job: AnyJob, template: str | None) -> AnyJob:
    return job.model_copy(update={"data": job.data.model_copy(update={"chat_template": template})})
