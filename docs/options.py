"""Writes what the guides say of options and of what goes with what, from the code itself. `python docs/options.py`"""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import annotated_types
from pydantic_core import PydanticUndefined

from velocity.config import combinations
from velocity.config.base import Config
from velocity.config.evaluate import EvaluateJob
from velocity.config.generate import GenerateJob
from velocity.config.job import Job
from velocity.config.load import FAMILIES, TASKS
from velocity.config.training import DECIDED, TrainingJob

PAGES = tuple(Path(__file__).parent / "guides" / name for name in ("job-file.md", "strategies.md"))
OTHERS: dict[str, type[Job]] = {"generate": GenerateJob, "evaluate": EvaluateJob}  # tasks with tables of their own
BLOCK = re.compile(r"(<!-- (options|decided|free|clashes|limits) -->\n).*?(<!-- /\2 -->)", re.DOTALL)
# For fields without a description of their own.
MEANINGS = {
    "data.eval.kind": "what is measured; the tables below have the options of each",
    "seed": "decides the order of the data, dropout, and which tokens are sampled",
    "tracking": "where the numbers go besides metrics.jsonl",
    "adapter.kind": "LoRA (arXiv 2106.09685), rank-stabilised LoRA (2312.03732) or DoRA (2402.09353)",
    "preference.kind": "the objective; the tables below have the options of each",
    "optimizer.kind": "AdamW (arXiv 1711.05101), or plain gradient descent",
    "optimizer.betas": "decay of the first and of the second moment",
    "optimizer.epsilon": "added to the root of the second moment",
    "optimizer.momentum": "0: none",
    "duration.epochs": "passes over the training data; 0.5 is half of one",
    "duration.steps": "optimizer steps",
    "duration.tokens": "counted as the batch counts them: padding of packed rows included",
    "launch.kind": "where the job runs: [launching](launching.md)",
    "launch.tags": "of the training job, for the bill",
    "launch.namespace": "where the Job is made",
    "launch.gpus_per_node": "what a node is given",
    "launch.cpus_per_node": "what a node is given",
    "launch.service_account": "whose rights pods have",
    "launch.node_selector": "labels of the machines that pods may run on",
    "launch.tolerations.key": "of the taint; left out: of any",
    "launch.tolerations.operator": "whether the taint's value counts",
    "launch.tolerations.value": "of the taint",
    "launch.tolerations.effect": "of the taint; left out: of any",
}
LIMITS = {annotated_types.Gt: ">", annotated_types.Ge: "≥", annotated_types.Lt: "<", annotated_types.Le: "≤"}
WORDS = {int: "whole number", float: "number", str: "text", bool: "`true`, `false`", dict: "mapping"}


@dataclass(frozen=True)
class Option:
    """One option; `names` are all places where it stands, `variant` what it belongs to where a section has several.

    `task` is the first one whose jobs have it; empty where it is one of training, or of every job.
    """

    names: tuple[str, ...]
    values: str
    default: str
    meaning: str
    variant: type[Config] | None = None
    task: str = ""

    @property
    def section(self) -> str:
        """The part of the job file that it belongs to; empty for the job itself."""
        return self.names[0].rpartition(".")[0].partition(".")[0]

    @property
    def heading(self) -> str:
        """The heading of the table that it stands in."""
        if self.variant is None:
            return f"### {self.section or 'The job itself'}{f', `task: {self.task}`' if self.task else ''}\n"
        about = " ".join(str(self.variant.__doc__).split())
        return f"#### {self.section}, `kind: {_kind(self.variant)}`\n{about}\n\n"

    def row(self) -> str:
        """A line of the table."""
        names = ", ".join(f"`{name}`" for name in self.names)
        return f"| {names} | {self.values} | {self.default} | {self.meaning} |\n"


def options() -> list[Option]:
    """Every option of a job file, in the order of the models; what a task has like an earlier one stands once."""
    own = (
        replace(one, task=task) for task in OTHERS for one in family_options(OTHERS[task]) if one not in before(task)
    )
    return [*family_options(TrainingJob), *own]


def before(task: str) -> list[Option]:
    """The options that stand above those of the task."""
    families = list(OTHERS.values())[: list(OTHERS).index(task)]
    return [option for family in (TrainingJob, *families) for option in family_options(family)]


def family_options(family: type[Job]) -> list[Option]:
    """Every option of one class of jobs."""
    places: dict[tuple[type[Config], ...], list[str]] = {}
    for path, models in sections(family):
        places.setdefault(models, []).append(path)
    return [option for models, paths in places.items() for option in _options(models, paths)]


def sections(kind: type[Config], path: str = "") -> Iterator[tuple[str, tuple[type[Config], ...]]]:
    """Each section's path, and the models of which one stands there."""
    yield path, (kind,)
    for name, info in kind.model_fields.items():
        inner, below = _models(info.annotation), f"{path}.{name}".lstrip(".")
        if len(inner) == 1:
            yield from sections(inner[0], below)
        elif inner:
            yield below, inner
            fields = (field for model in inner for field in model.model_fields.items())
            for field, about in fields:
                for nested in _models(about.annotation):
                    yield from sections(nested, f"{below}.{field}")


def _models(kind: Any) -> tuple[type[Config], ...]:
    if isinstance(kind, type) and issubclass(kind, Config):
        return (kind,)
    return tuple(found for member in typing.get_args(kind) for found in _models(member))


def _options(models: Sequence[type[Config]], paths: Sequence[str]) -> Iterator[Option]:
    """Those of a section; where its kinds mean different things by one name, each kind has its own."""
    if all(len(meanings) == 1 for meanings in _meanings(models).values()):
        yield from _merged(models, paths)
        return
    yield from (option for option in _merged(models, paths) if option.names[0].endswith(".kind"))
    for model in models:
        own = (option for option in _merged([model], paths) if not option.names[0].endswith(".kind"))
        yield from (replace(option, variant=model) for option in own)


def _meanings(models: Sequence[type[Config]]) -> dict[str, set[tuple[str, str]]]:
    """What default and which description each field has, over all of the models."""
    found: dict[str, set[tuple[str, str]]] = {}
    for model in models:
        for name, info in model.model_fields.items():
            if name != "kind":
                found.setdefault(name, set()).add((str(info.default), info.description or ""))
    return found


def _kind(model: type[Config]) -> str:
    return str(model.model_fields["kind"].default)


def _merged(models: Sequence[type[Config]], paths: Sequence[str]) -> Iterator[Option]:
    for name in dict.fromkeys(name for model in models for name in model.model_fields):
        having = [model for model in models if name in model.model_fields]
        infos = [model.model_fields[name] for model in having]
        if _models(infos[0].annotation):
            continue
        names = tuple(f"{path}.{name}".lstrip(".") for path in paths)
        values = dict.fromkeys(say(info.annotation, info.metadata) for info in infos)
        meaning = infos[0].description or MEANINGS.get(names[0], "")
        if len(having) < len(models):
            meaning += f" ({', '.join(f'`{_kind(model)}`' for model in having)} alone)"
        yield Option(names, ", ".join(values), _default(infos[0].default), meaning.replace("|", "\\|"))


def say(kind: Any, limits: Sequence[Any] = ()) -> str:
    """Which values a type takes, in words."""
    origin, members = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return say(members[0], members[1:])
    if origin is Literal:
        return ", ".join(f"`{member}`" for member in members)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(say(member, limits) for member in members if member is not type(None))
    if origin is tuple:
        count = "one or a list of" if members[-1] is Ellipsis else f"{len(members)} of:"
        return f"{count} {say(members[0])}"
    return " ".join([WORDS[origin or kind], *_limits(limits)])


def _limits(limits: Sequence[Any]) -> Iterator[str]:
    for limit in limits:
        if isinstance(limit, tuple(LIMITS)):
            yield f"{LIMITS[type(limit)]} {getattr(limit, type(limit).__name__.lower())}"
        else:  # a pydantic Field holds several
            yield from _limits(getattr(limit, "metadata", ()))


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "none"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def tables() -> str:
    """One table a section of the job file, or a kind of it."""
    rows: dict[str, str] = {}
    for option in options():
        heading = option.heading + (_as_above(option.section, option.task) if option.task else "")
        rows[heading] = rows.get(heading, "") + option.row()
    head = "| option | values | default | meaning |\n|---|---|---|---|\n"
    return "\n".join(f"{heading}{head}{lines}" for heading, lines in rows.items())


def _as_above(section: str, task: str) -> str:
    """What the section of a task has as it stands in another table; sections that are all alike, at the top.

    Of a section that is shorter than the other jobs' its options are named there.
    """
    earlier, ours = before(task), family_options(OTHERS[task])
    alike = [one for one in ours if one in earlier]
    names = [one.names[0] for one in alike if one.section == section]
    if not section:
        own = {one.section for one in ours if one not in earlier}
        shared = [one for one in alike if one.section and one.section not in own]
        whole = {one.section for one in shared} - {one.section for one in earlier if one not in ours}
        names += dict.fromkeys(one.section if one.section in whole else one.names[0] for one in shared)
    return f"{_listed(names, 'and')} as above, and:\n\n" if names else ""


def _listed(names: Sequence[str], word: str) -> str:
    """`a`, `b` and `c`."""
    *first, last = (f"`{name}`" for name in names)
    return f"{', '.join(first)} {word} {last}" if first else last


def decided() -> str:
    """The raw DeepSpeed settings that are refused, and what to set instead."""
    rows = "".join(f"| `{name}` | `{key}` |\n" for name, key in DECIDED.items())
    return f"| refused under `deepspeed:` | set |\n|---|---|\n{rows}"


def free() -> str:
    """The keys that may differ where a run goes on, for each class of jobs."""
    lists = []
    for family in FAMILIES:
        tasks = _listed([task for task in TASKS if TASKS[task] is family], "or")
        keys = "".join(f"- `{key}`\n" for key in sorted(family.FREE))
        lists.append(f"With task {tasks}:\n\n{keys}")
    return "\n".join(lists)


def clashes() -> str:
    """Which settings do not go together."""
    rows = "".join(
        f"| `{one.one.key}` {one.one.words} | `{one.other.key}` {one.other.words} | {one.why} | {one.use} |\n"
        for one in combinations.CLASHES
    )
    return f"| this | does not go with | because | use |\n|---|---|---|---|\n{rows}"


def limits() -> str:
    """What a setting asks of the machine or the model."""
    rows = "".join(
        f"| `{one.setting.key}` {one.setting.words} | {re.sub(r'(, not|, and the model has) {.*?}', '', one.asks)} "
        f"| {one.use} |\n"
        for one in combinations.LIMITS
    )
    return f"| this | asks for | use |\n|---|---|---|\n{rows}"


def page(text: str) -> str:
    """The guide's text with fresh blocks."""
    blocks = {"options": tables, "decided": decided, "free": free, "clashes": clashes, "limits": limits}
    return BLOCK.sub(lambda found: f"{found[1]}{blocks[found[2]]()}{found[3]}", text)


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(page(path.read_text("utf-8")), "utf-8")
