"""Every path that a job reads, and where in its values it stands. Pure: it looks at no disk, and knows no task."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from velocity.config.job import Job

# What lies there: a model (a folder or a hub id), records (what `PlaceConfig` names), a single file, a folder.
Kind = Literal["model", "records", "file", "folder"]
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")  # what can be one


class Place(NamedTuple):
    """A path of a job: the key that a message names, and the steps to the value that holds it."""

    key: str
    path: str
    kind: Kind
    steps: tuple[str | int, ...]
    behind: str = ""  # what of the value follows the path


def places_of(job: Job) -> Iterator[Place]:
    """What the job reads, in the order of its file; but no cache and no fast disk: these are a machine's own."""
    yield Place("model", job.model.path, "model", ("model", "path"))
    data: Any = job.data
    for name in ("train", "prompts"):
        for number, source in enumerate(getattr(data, name, ())):
            yield Place(f"data.{name}", source.path, "records", ("data", name, number, "path"))
    for name, found in getattr(data, "eval", {}).items():
        yield from _of_set(name, found)
    if data.chat_template is not None:
        yield Place("data.chat_template", data.chat_template, "file", ("data", "chat_template"))
    if (retrieval := getattr(job, "retrieval", None)) is not None:
        yield Place("retrieval.path", retrieval.path, "records", ("retrieval", "path"))
        if retrieval.model is not None:
            yield Place("retrieval.model", retrieval.model, "model", ("retrieval", "model"))
    folder = getattr(getattr(job, "benchmarks", None), "folder", None)
    if folder is not None:
        yield Place("benchmarks.folder", folder, "folder", ("benchmarks", "folder"))


def put(values: Mapping[str, Any], place: Place, path: str) -> None:
    """The job's plain values name another path in that place."""
    node: Any = values
    for step in place.steps[:-1]:
        node = node[step]
    node[place.steps[-1]] = path + place.behind


def _of_set(name: str, found: Any) -> Iterator[Place]:
    """Of an evaluation set: one source, or several."""
    key, steps = f"data.eval.{name}", ("data", "eval", name)
    if isinstance(found, (list, tuple)):
        for number, source in enumerate(found):
            yield Place(key, source.path, "records", (*steps, number, "path"))
        return
    yield Place(key, found.path, "records", (*steps, "path"))
    if (function := getattr(found, "function", None)) is not None:
        path, colon, function_name = function.rpartition(":")
        yield Place(f"{key}.function", path, "file", (*steps, "function"), colon + function_name)
