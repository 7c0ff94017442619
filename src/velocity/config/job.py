"""What every job has, whatever its task, and a job with the places where its values were written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, TypeVar

from pydantic import BeforeValidator, Field

from velocity.config.base import Config
from velocity.config.launch import Launch, LocalConfig
from velocity.config.sections import JobData, MirrorConfig, ModelConfig, path_to_mapping
from velocity.errors import UserError


def auto_to_mapping(value: Any) -> Any:
    """`auto` stands for a mapping in which everything is left to the planner."""
    return {} if value == "auto" else value


class Job(Config):
    """The fields of every job; each task's own class has more.

    A run folder goes on where only what is `FREE` differs; anything else makes it another job.
    """

    FREE: ClassVar[tuple[str, ...]] = ()

    task: str
    model: Annotated[ModelConfig, BeforeValidator(path_to_mapping, json_schema_input_type=str | ModelConfig)]
    output: str = Field(description="the run folder; it belongs to this job")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    data: JobData
    checkpoint: MirrorConfig = MirrorConfig()
    launch: Launch = LocalConfig()

    def ends_like(self, other: Job) -> bool:
        """True where a run of `other` that is complete leaves nothing to do for this job, which it may go on for."""
        return True


AnyJob = TypeVar("AnyJob", bound=Job, covariant=True)


@dataclass(frozen=True)
class LoadedJob(Generic[AnyJob]):
    """A job and, for each dotted key, where its value came from: file and line, command line, default, planner."""

    job: AnyJob
    origins: dict[str, str]
    path: Path


@contextmanager
def placed(origins: Mapping[str, str]) -> Iterator[None]:
    """A UserError from inside that names a key of the job also says where that key was written."""
    try:
        yield
    except UserError as error:
        problems = [replace(problem, where=_place(problem.where, origins)) for problem in error.problems]
        raise UserError(problems) from None


def _place(key: str, origins: Mapping[str, str]) -> str:
    """`job.yaml:4 data.train` for a key that was written; what it is where it is no key, or has its default."""
    inside = (origins[name] for name in origins if name == key or name.startswith(f"{key}."))
    written = next((origin for origin in inside if origin != "default" and not origin.startswith("planner")), None)
    return f"{written} {key}" if written else key


def flatten(data: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key → value of the leaves of nested mappings and sequences."""
    if isinstance(data, dict) and data:
        items: Any = data.items()
    elif isinstance(data, (list, tuple)) and any(isinstance(item, dict) for item in data):
        items = enumerate(data)
    else:
        return {prefix: data}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat
