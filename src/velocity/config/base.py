"""From a YAML file and overrides to a typed value, with line numbers and nearest names in errors. It knows no key."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Tag, ValidationError

from velocity.errors import Problem, UserError


class Config(BaseModel):
    """A frozen section of a job file; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


AnyConfig = TypeVar("AnyConfig", bound=Config)


@dataclass
class Mark:
    """Where a value was written (`job.yaml:12` or `command line`), and the same for all below it."""

    where: str
    children: dict[str | int, Mark] = field(default_factory=dict)

    def find(self, path: Sequence[str | int]) -> Mark:
        """The mark nearest to `path`; parts that the file does not have (a union's tag) are passed over."""
        node = self
        for part in path:
            node = node.children.get(part, node)
        return node


class _Loader(yaml.SafeLoader):
    """YAML 1.1, but 1e-5 is a number, as every reader of a job file expects."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(\d[\d_]*)(\.\d*)?([eE][-+]?\d+)$|^[-+]?\d[\d_]*\.\d*$|^[-+]?\.\d+([eE][-+]?\d+)?$|^[-+]?\.inf$|^\.nan$"
    ),
    list("-+0123456789."),
)


def read_yaml(path: Path) -> tuple[dict[str, Any], Mark]:
    """The file's mapping and where each of its values stands; UserError where it is not a YAML mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the job file: {error}", str(path), "give the path of a YAML file") from None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        data = loader.construct_document(node) if node else None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"not valid YAML: {error.problem}", f"{path}:{line}", "see docs/guides/job-file.md") from None
    except (yaml.YAMLError, ValueError) as error:  # a control character; a date such as 2024-13-45
        what = f"not valid YAML: {str(error).splitlines()[0]}"
        raise UserError(what, str(path), "see docs/guides/job-file.md") from None
    if not isinstance(data, dict):
        raise UserError("a job file is a mapping of keys to values", f"{path}:1", "start with 'task: pretrain'")
    assert node is not None, "a mapping was read from it"
    return data, _mark(node, str(path))


def _mark(node: yaml.Node, path: str) -> Mark:
    mark = Mark(f"{path}:{node.start_mark.line + 1}")
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value in mark.children:
                line = key.start_mark.line + 1
                raise UserError(f"the key '{key.value}' stands twice", f"{path}:{line}", "remove one of the two")
            child = _mark(value, path)
            child.where = f"{path}:{key.start_mark.line + 1}"
            mark.children[key.value] = child
    elif isinstance(node, yaml.SequenceNode):
        mark.children.update({i: _mark(item, path) for i, item in enumerate(node.value)})
    return mark


def apply_override(data: dict[str, Any], mark: Mark, text: str) -> None:
    """Set `key.path=value` in `data`; the value is read as YAML. UserError where the text is not of that form."""
    path, separator, value = text.partition("=")
    if not separator or not path:
        raise UserError(
            f"'{text}' is neither a job file nor key.path=value", "command line", "e.g. optimizer.learning_rate=1e-5"
        )
    try:
        parsed = yaml.load(value, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError):
        raise UserError(f"the value of '{path}' is not valid YAML: {value}", "command line", "quote it") from None
    parts = [int(part) if part.isdigit() else part for part in path.split(".")]
    node: Any = data
    for part in parts[:-1]:
        mark = mark.children.setdefault(part, Mark("command line"))
        node = _descend(node, part, text)
    try:
        node[parts[-1]] = parsed
    except (TypeError, IndexError):
        raise UserError(
            f"'{path}' does not lead to a value that can be set", "command line", f"check '{text}'"
        ) from None
    mark.children[parts[-1]] = _mark_value(parsed, "command line")


def _mark_value(value: Any, where: str) -> Mark:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return Mark(where, {name: _mark_value(item, where) for name, item in items})


def _descend(node: Any, part: str | int, text: str) -> Any:
    """The container under `part`; a missing one becomes an empty mapping, and a word the mapping it stands for."""
    try:
        word = node.get(part) if isinstance(node, dict) else node[part]
        if not isinstance(word, (dict, list)):
            node[part] = {"path": word} if isinstance(word, str) and word != "auto" else {}
        return node[part]
    except (TypeError, IndexError, KeyError):
        raise UserError(f"'{text}' names a place that the job file does not have", "command line") from None


def validate(kind: type[AnyConfig], data: dict[str, Any], mark: Mark) -> AnyConfig:
    """`data` as a `kind`; one UserError that lists every problem with its place."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise UserError(_problems(kind, mark, error.errors())) from None


def _problems(kind: type[Config], mark: Mark, errors: Sequence[Any]) -> list[Problem]:
    """One problem a place, though a union complains once a member; a key that was misspelt is not missing as well."""
    unknown = [error["loc"] for error in errors if error["type"] == "extra_forbidden"]
    meant = {(*loc[:-1], *_nearest(kind, loc)) for loc in unknown}
    named: dict[str, Any] = {}
    for error in errors:
        if error["type"] != "missing" or error["loc"] not in meant:
            named.setdefault(".".join(_written(mark, error)), error)
    return [_problem(kind, mark, name, error) for name, error in named.items()]


def _nearest(kind: type[Config], path: Sequence[str | int]) -> list[str]:
    known = [name for name in _fields_at(kind, path[:-1]) if name != path[-1]]
    return difflib.get_close_matches(str(path[-1]), known, n=1)


def _problem(kind: type[Config], mark: Mark, name: str, error: Any) -> Problem:
    path = tuple(error["loc"])
    where = mark.find(path).where
    if error["type"] == "extra_forbidden":
        near, known = _nearest(kind, path), sorted(_fields_at(kind, path[:-1]))
        fix = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(known)}"
        return Problem(f"unknown key '{name}'", where, fix)
    if error["type"] == "missing":
        return Problem(f"'{name}' is missing", where, f"add '{path[-1]}: …'")
    message = error["msg"].removeprefix("Value error, ")
    what, _, fix = message.partition("; ")
    if not path:  # two keys contradict each other: the message begins with the one to change
        where = mark.find(re.split(r"[^\w.]", what)[0].split(".")).where
    value = error["input"]
    shown = "" if isinstance(value, (dict, list, BaseModel)) else f" (it is {value!r})"
    return Problem(f"{name}: {what}{shown}" if name else what, where, fix)


def _written(mark: Mark, error: Any) -> Iterator[str]:
    """The parts of the error's place that the file has, and a last one it has not; a union's tag stands in no file."""
    path = error["loc"]
    for i, part in enumerate(path):
        if part in mark.children or (error["type"] in ("missing", "invalid_key") and i == len(path) - 1):
            yield str(part)
        mark = mark.children.get(part, mark)


def _fields_at(kind: Any, path: Sequence[str | int]) -> Iterator[str]:
    """Names that may stand at `path` below the type `kind`, over all members of a union."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        yield from _fields_at(arguments[0], path)
    elif origin in (typing.Union, types.UnionType):
        tagged = [member for member in arguments if path and Tag(str(path[0])) in typing.get_args(member)]
        for member in tagged or arguments:
            yield from _fields_at(member, path)
    elif origin in (list, tuple, dict):
        yield from _fields_at(arguments[-1 if origin is dict else 0], path[1:])
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        if not path:
            yield from kind.model_fields
        elif path[0] in kind.model_fields:
            yield from _fields_at(kind.model_fields[str(path[0])].annotation, path[1:])
        else:  # a union's tag
            yield from _fields_at(kind, path[1:])
