"""Tasks of lm-eval: found, loaded, run on a model, and their figures with intervals. It knows no engine and no rank.

Only lm-eval's tasks and arithmetic are used: the intervals are ours, and nothing of it is written or logged.
"""

from __future__ import annotations

import difflib
import importlib
import logging
import math
import numbers
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from velocity.errors import UserError
from velocity.intervals import (
    Interval,
    Transform,
    mean_interval,
    ratio_interval,
    sample_interval,
    seed_of,
    weighted_interval,
)

EXTRA = "ProfoundVelocity[evaluation]"
SEEDS = (0, 1234)  # of Python's and numpy's generators, and of the choice of examples: lm-eval's own
LOWER = ("perplexity", "bits_per_byte", "ter", "brier_score", "word_edit_distance")


class Config(Protocol):
    """What a job says of benchmarks."""

    @property
    def tasks(self) -> Sequence[str]:
        """Names of tasks, groups or tags."""

    @property
    def folder(self) -> str | None:
        """Where task files of the user's own lie."""

    @property
    def limit(self) -> int | None:
        """Rows of each task."""

    @property
    def fewshot(self) -> int | None:
        """Examples before a row, where the task leaves it open."""

    @property
    def chat(self) -> bool:
        """Whether rows are put into the chat template."""


def load_tasks(name: str, config: Config) -> Any:
    """What lm-eval has under a name, with its data sets, which are fetched where they are not here.

    UserError where there is no such name, or it cannot be loaded or run.
    """
    manager = _manager(config.folder)
    if name not in manager.task_index:
        near = difflib.get_close_matches(name, manager.all_tasks, 3)
        known = "name one of lm-eval's, or of a file in benchmarks.folder"
        fix = f"did you mean {' or '.join(near)}?" if near else known
        raise UserError(f"there is no benchmark {name}", "benchmarks.tasks", fix)
    loaded = _load(manager, name)
    for task in loaded["tasks"].values():
        whys = {"UNSAFE_CODE": "runs code that a model writes", "MULTIMODAL": "asks about more than text"}
        for why in (why for mark, why in whys.items() if getattr(task, mark, False)):
            raise UserError(f"benchmark {name} {why}: it is not supported", "benchmarks.tasks", "leave it out")
        _choose_examples(task, config.fewshot)
    return loaded


def run_benchmarks(config: Config, lm: Any) -> dict[str, dict[str, Any]]:
    """By the job's names: `figures`, as evaluation.json has them, and `rows`, as rows/benchmark-NAME.jsonl has them.

    `lm` is a VelocityLM. Every rank calls this with the same job, and asks `lm` the same things in the same order.
    """
    with _seeded():
        return {name: _run(name, config, lm) for name in config.tasks}


def _run(name: str, config: Config, lm: Any) -> dict[str, Any]:
    loaded = load_tasks(name, config)
    evaluate = importlib.import_module("lm_eval.evaluator").evaluate
    with _quiet():
        told = evaluate(
            lm, loaded, limit=config.limit, bootstrap_iters=0, log_samples=True,
            apply_chat_template=config.chat, fewshot_as_multiturn=config.chat,
        )  # fmt: skip
    figures = {task: _figures(task, loaded["tasks"][task], told) for task in loaded["tasks"]}
    rows = [row for task in figures for row in _rows(task, told["samples"][task])]
    if name in figures:
        return {"figures": figures[name], "rows": rows}
    group = loaded.get("groups", {}).get(name)
    whole = {
        "measures": _together(list(figures.values()), told.get("groups", {}).get(name)) or _apart(figures),
        "version": None if group is None else group.version,
        "fewshot": told["n-shot"].get(name),
        "rows": sum(one["rows"] for one in figures.values()),
        "tasks": figures,
    }
    return {"figures": whole, "rows": rows}


def _figures(name: str, task: Any, told: Mapping[str, Any]) -> dict[str, Any]:
    samples, direction = told["samples"][name], told["higher_is_better"].get(name, {})
    measures = {}
    for key, value in told["results"][name].items():
        metric, comma, kind = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        items = [sample[metric] for sample in samples if sample["filter"] == kind and metric in sample]
        aggregate = task.aggregation().get(metric)
        interval = _interval(items, aggregate, seed_of("benchmark", name, key))
        higher = direction.get(metric)
        higher = not metric.endswith(LOWER) if higher is None else higher
        measures[_measure(metric, kind)] = _shown(value, interval, higher=higher)
    return {
        "measures": measures,
        "version": told["versions"].get(name),
        "fewshot": told["n-shot"].get(name),
        "rows": len({sample["doc_id"] for sample in samples}),
    }


def _shown(value: Any, interval: Interval, *, higher: bool) -> dict[str, Any]:
    """A measure as evaluation.json has it; null where there is no number."""
    ends = {"value": float(value), "low": interval.low, "high": interval.high}
    known = {name: end if end is not None and math.isfinite(end) else None for name, end in ends.items()}
    return {**known, "better": "higher" if higher else "lower"}


def _measure(metric: str, kind: str) -> str:
    """A measure's name; `kind` is the filter that found the answers, where a task has several."""
    return metric if kind == "none" else f"{metric},{kind}"


def _interval(items: Sequence[Any], aggregate: Callable[[Any], Any] | None, seed: int) -> Interval:
    """Of what lm-eval makes of these items, by the way that fits how it does that."""
    ratios: dict[str, Transform] = {
        "perplexity": lambda value: math.exp(-value),
        "weighted_perplexity": lambda value: math.exp(-value),
        "bits_per_byte": lambda value: -value / math.log(2),
        "weighted_mean": float,
    }
    name = getattr(aggregate, "__name__", "mean")
    try:
        if name in ("mean", "nanmean"):
            values = np.array(items, dtype=np.float64)
            values = values[~np.isnan(values)] if name == "nanmean" else values
            shares = len(values) > 0 and values.min() >= 0 and values.max() <= 1
            return mean_interval(values, seed, bounds=(0.0, 1.0) if shares else None)
        if name in ratios:
            pairs = [item if isinstance(item, tuple | list) else (item, 1.0) for item in items]
            top_N, bottom_N = np.array(pairs, dtype=np.float64).T
            return ratio_interval(top_N, bottom_N, seed, ratios[name])
        return sample_interval(items, aggregate or np.mean, seed)
    except (ArithmeticError, TypeError, ValueError):  # what it makes of a resample, or of these items, is no number
        return Interval(math.nan, None, None)


def _together(parts: Sequence[Mapping[str, Any]], group: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a group says of its tasks together, with the interval of a mean weighted as lm-eval weighs it."""
    found = {}
    for key, value in (group or {}).items():
        metric, comma, kind = key.partition(",")
        measure = _measure(metric, kind)
        shown = [(part["measures"][measure], part["rows"]) for part in parts if measure in part["measures"]]
        if not comma or metric.endswith("_stderr") or not shown:
            continue
        intervals = [Interval(one["value"], one["low"], one["high"]) for one, _ in shown]
        ways = [weighted_interval(intervals, weights) for weights in ([rows for _, rows in shown], [1.0] * len(shown))]
        interval = min(ways, key=lambda way: abs(way.value - value))
        found[measure] = _shown(value, interval, higher=shown[0][0]["better"] == "higher")
    return found


def _apart(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The measures of each task under its name: of tasks that lm-eval counts together in no way."""
    return {f"{name}, {measure}": one for name, part in parts.items() for measure, one in part["measures"].items()}


def _rows(name: str, samples: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One line a row, in order: what was asked, what came back, and what each measure makes of it."""
    lines: dict[int, dict[str, Any]] = {}
    for sample in samples:
        place = int(sample["doc_id"])
        asked = sample["arguments"]
        line = lines.setdefault(place, {
            "id": f"{name}-{sample['doc_hash'][:16]}-{place}",
            "row": place,
            "task": name,
            "prompt": str(asked[0][0]),
            "choices": [str(one[1]) for one in asked if len(one) > 1 and isinstance(one[1], str)],
            "target": _plain(sample["target"]),
            "responses": _plain(sample["filtered_resps"]),
            "scores": {},
        })  # fmt: skip
        kind = sample["filter"]
        line["scores"] |= {
            _measure(metric, kind): _plain(sample[metric])
            for metric in sample["metrics"]
            if isinstance(sample[metric], numbers.Real)  # others are parts of what is a number of all rows alone
        }
    return [lines[place] for place in sorted(lines)]


def _plain(value: Any) -> Any:
    """The value as JSON has it."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(one) for one in value]
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, str | int | float | bool | None) else str(value)


@cache
def _manager(folder: str | None) -> Any:
    """lm-eval's index of tasks, in which those of the folder come before its own of the same name."""
    try:
        tasks = importlib.import_module("lm_eval.tasks")
    except ImportError:
        raise UserError("benchmarks need lm-eval", "benchmarks", f"pip install '{EXTRA}'") from None
    if folder is not None and not any(Path(folder).glob("**/*.yaml")):
        where = f"benchmarks.folder: {folder}"
        raise UserError("there is no task file (*.yaml) in the folder", where, "name the folder that has them")
    with _quiet():
        return tasks.TaskManager(include_path=folder)


def _load(manager: Any, name: str) -> Any:
    try:
        with _quiet():
            return manager.load([name])
    except Exception as error:  # of the hub, the network, a file of the user's: lm-eval lets all of them through
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        fix = "fetch its data set where there is a network, or mend its task file and the paths in it"
        raise UserError(f"benchmark {name} does not load: {reason:.200}", "benchmarks.tasks", fix) from error


def _choose_examples(task: Any, fewshot: int | None) -> None:
    """As lm-eval's command does: a task that says 0 stays at 0, one that says nothing has none unless asked for."""
    own = task.get_config("num_fewshot")
    if fewshot is not None and own != 0:
        task.set_config(key="num_fewshot", value=fewshot)
    elif own is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=SEEDS[1])


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, lm-eval, datasets and the hub say nothing but errors, and show no bars."""
    datasets: Any = importlib.import_module("datasets")
    module: Any = importlib.import_module("lm_eval.api.task")
    logs = [logging.getLogger(name) for name in ("datasets", "huggingface_hub", "lm_eval")]
    levels, bar, bars = [log.level for log in logs], module.tqdm, datasets.is_progress_bar_enabled()
    for log in logs:
        log.setLevel(logging.ERROR)
    module.tqdm = lambda rows, **_: rows
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
        module.tqdm = bar
        if bars:
            datasets.enable_progress_bars()


@contextmanager
def _seeded() -> Iterator[None]:
    """Inside, tasks that draw from Python's and numpy's generators draw the same each time."""
    before, numpys = random.getstate(), np.random.get_state()
    random.seed(SEEDS[0])
    np.random.seed(SEEDS[1])
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(numpys)
