"""From a job file to a typed job: the only place that matches on a task's name."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Discriminator, TypeAdapter

from velocity.config.base import Config, Mark, apply_override, read_yaml, validate
from velocity.config.evaluate import EvaluateJob
from velocity.config.generate import GenerateJob
from velocity.config.job import Job, LoadedJob, flatten
from velocity.config.launch import COMMON, TARGETS
from velocity.config.training import TrainingJob
from velocity.errors import Problem, UserError
from velocity.secrets import SHORTEST, found_in, is_secret_name, scrub

TASKS: Mapping[str, type[Job]] = {
    "pretrain": TrainingJob,
    "sft": TrainingJob,
    "preference": TrainingJob,
    "generate": GenerateJob,
    "evaluate": EvaluateJob,
}
FAMILIES: Sequence[type[Job]] = tuple(dict.fromkeys(TASKS.values()))


def load_job(path: Path, overrides: Sequence[str] = (), target: str | None = None) -> LoadedJob[Any]:
    """The job of a YAML file with `key.path=value` overrides; UserError with every problem's place.

    For another `target` than the file's, of its launch section what every target has is kept.
    """
    data, mark = read_yaml(path)
    if target is not None:
        _aim(data, mark, target)
    for text in overrides:
        apply_override(data, mark, text)
    job = job_of(data, mark)
    loaded = LoadedJob(job, {key: _origin(job, key, mark) for key in flatten(job.model_dump())}, path)
    if problems := list(_secrets(loaded)):
        raise UserError(problems)
    return loaded


def _aim(data: dict[str, Any], mark: Mark, target: str) -> None:
    """The launch section is the target's."""
    if target not in TARGETS:
        near = difflib.get_close_matches(target, TARGETS, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"unknown target {target}", "--on", f"{meant}one of {', '.join(TARGETS)}")
    section = data.get("launch") or {}
    if isinstance(section, dict) and section.get("kind", "local") != target:
        data["launch"] = {key: value for key, value in section.items() if key in COMMON} | {"kind": target}
        mark.children.setdefault("launch", Mark("command line")).children["kind"] = Mark("command line")


def _secrets(loaded: LoadedJob[Job]) -> Iterator[Problem]:
    """One problem a secret: the job is copied into the run folder, the model card and the trackers."""
    for key, value in flatten(loaded.job.model_dump()).items():
        if loaded.origins[key] != "default" and (what := _secret_in(key, value)):
            fix = "give it in the environment; a job file or a command line is copied and seen"
            yield Problem(f"{scrub(key)} holds {what}", loaded.origins[key], fix)


def _secret_in(key: str, value: Any) -> str | None:
    texts = [text for text in (value if isinstance(value, (tuple, list)) else [value]) if isinstance(text, str)]
    found = next(filter(None, map(found_in, [key, *texts])), None)
    # our own names, such as end_tokens, call nothing a secret
    named = key.startswith("deepspeed.") and is_secret_name(key.rpartition(".")[2])
    if found is None and named and any(len(text) >= SHORTEST for text in texts):
        return "what its name calls a secret"  # such as DeepSpeed's comet.api_key
    return found


def job_of(data: dict[str, Any], mark: Mark) -> Any:
    """The job that a mapping describes, of its task's class; UserError where it describes none."""
    task = data.get("task")
    if not isinstance(task, str) or task not in TASKS:
        what = f"task: {task!r} is none of them" if "task" in data else "'task' is missing"
        near = difflib.get_close_matches("task", map(str, data), n=1) if "task" not in data else []
        meant = f"did you mean 'task' by '{near[0]}'? " if near else ""
        raise UserError(what, mark.find(near or ["task"]).where, f"{meant}task: one of {', '.join(TASKS)}")
    return validate(TASKS[task], data, mark)


def read_resolved(path: Path) -> Any:
    """The job of a run folder's job.yaml."""
    return job_of(*read_yaml(path))


def schema() -> dict[str, Any]:
    """The JSON Schema of a job file, of any task."""
    return TypeAdapter(Annotated[TrainingJob | GenerateJob | EvaluateJob, Discriminator("task")]).json_schema()


def _origin(job: Job, key: str, mark: Mark) -> str:
    node: Any = job
    for part in key.split("."):
        if isinstance(node, BaseModel) and part not in node.model_fields_set:
            return "default"
        node = getattr(node, part, None) if isinstance(node, BaseModel) else _item(node, part)
    return mark.find([int(part) if part.isdigit() else part for part in key.split(".")]).where


def _item(node: Any, part: str) -> Any:
    if isinstance(node, (list, tuple)):
        node = {str(number): item for number, item in enumerate(node)}
    return node.get(part) if isinstance(node, dict) else None  # None: half of a name with a dot in it


def option_names() -> list[str]:
    """Every dotted option of a job file, sorted; a test holds the list, so that an option is added on purpose."""
    return sorted({name for family in FAMILIES for name in _option_names(family)})


def _option_names(kind: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(kind, type) and issubclass(kind, Config):
        for name, info in kind.model_fields.items():
            yield from _option_names(info.annotation, f"{prefix}.{name}" if prefix else name)
        return
    nested = [a for a in typing.get_args(kind) if a is not Ellipsis and _holds_config(a)]
    for member in nested:
        yield from _option_names(member, prefix)
    if not nested:
        yield prefix


def _holds_config(kind: Any) -> bool:
    if isinstance(kind, type):
        return issubclass(kind, Config)
    return any(_holds_config(member) for member in typing.get_args(kind))
