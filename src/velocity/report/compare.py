"""Runs side by side, or one by itself: their numbers as tables. It knows no picture and no row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from velocity.report.facts import Run
from velocity.report.headline import Points, change, evaluations, interval, measure
from velocity.report.spelling import duration
from velocity.report.table import Table
from velocity.runs.folder import MEASURES
from velocity.runs.sparkline import sparkline

NEVER_COMPARED = ("output",)


def overview(runs: Sequence[Run]) -> Table:
    """A line a run."""
    rows = [
        [run.label, run.task, run.model, run.state, "" if run.seconds is None else duration(run.seconds)]
        for run in runs
    ]
    return Table("The runs", ["run", "task", "model", "state", "time"], rows, names=4)


def trained(runs: Sequence[Run]) -> Table | None:
    """What training changed on each evaluation set: before the first step, on the way, and after the last one."""
    found = {run.label: evaluations(run) for run in runs}
    keys = list(dict.fromkeys(key for points in found.values() for key in points))
    rows = []
    for name, key in keys:
        for label, points in found.items():
            if (name, key) in points:
                who = [label] if len(runs) > 1 else []
                rows.append([name, MEASURES[key], *who, *_course(key, points[name, key])])
    if not rows:
        return None
    who = ["run"] if len(runs) > 1 else []
    head = ["evaluation set", "measure", *who, "before", "after", "change", "on the way", "best"]
    return Table("Before, on the way and after", head, rows, names=2 + len(who), note="In brackets 95 % intervals.")


def _course(key: str, points: Points) -> list[str]:
    """Before and after with intervals, the change, a curve of blocks, and the best with its step."""
    values = [found.value for _, found in points]
    before, after = (_with_interval(key, found._asdict()) for _, found in (points[0], points[-1]))
    known = [(value, step) for (step, _), value in zip(points, values, strict=True) if value is not None]
    best, step = (min if key == "perplexity" else max)(known, default=(None, 0))
    told = "" if best is None else f"{measure(key, best)} (step {step:,.0f})"
    if len(values) == 1:
        return [before, "", "", "", told]
    return [before, after, change(key, values[0], values[-1]).partition(",")[0], sparkline(values), told]


def measured(runs: Sequence[Run]) -> Table | None:
    """Each measure of each set, a column a run, every value with its 95 % interval."""
    shown = [run for run in runs if run.evaluation]
    keys = list(dict.fromkeys(key for run in shown for key, _ in measures(run.evaluation)))
    if not keys:
        return None
    values = [dict(measures(run.evaluation)) for run in shown]
    rows = []
    for name, key in keys:
        cells = [_with_interval(key, found.get((name, key))) for found in values]
        rows.append([name, _words(key), *(_rows_of(shown, name)), *cells])
    head = ["set", "measure", "rows", *(run.label if len(runs) > 1 else "value" for run in shown)]
    note = "In brackets 95 % intervals: values whose intervals overlap may still differ, pair by pair."
    return Table("What was measured", head, rows, names=2, note=note)


def measures(evaluation: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], Mapping[str, Any]]]:
    """((set, measure), value and interval) of evaluation.json, benchmarks last."""
    for part in ("sets", "benchmarks"):
        for name, found in (evaluation.get(part) or {}).items():
            for key, value in (found.get("measures") or {}).items():
                if isinstance(value, dict):
                    yield (str(name), str(key)), value


def _rows_of(runs: Sequence[Run], name: str) -> list[str]:
    found = ((run.evaluation.get(part) or {}).get(name, {}) for run in runs for part in ("sets", "benchmarks"))
    counts = sorted({f"{one['rows']:,}" for one in found if isinstance(one.get("rows"), int)})
    return [" / ".join(counts)]


def _with_interval(key: str, value: Mapping[str, Any] | None) -> str:
    if value is None:
        return "–"
    between = interval(key, value).removeprefix("95 %: ")
    return measure(key, value.get("value")) + (f" ({between})" if between else "")


def _words(key: str) -> str:
    return key.replace("_", " ")


def paired(runs: Sequence[Run], compared: Sequence[Mapping[str, Any]]) -> Table | None:
    """How the runs differ from the first one on the same rows: `compared` is what `velocity show` says of them."""
    labels = {str(run.folder): run.label for run in runs}
    rows = [
        [labels.get(one["run"], one["run"]), labels.get(one["with"], one["with"]), name, _words(key), value["words"]]
        for one in compared
        for name, found in one["sets"].items()
        for key, value in found.items()
    ]
    head = ["run", "against", "set", "measure", "difference"]
    return Table("Paired differences: the same rows by both", head, rows, names=5) if rows else None


def differing_settings(runs: Sequence[Run]) -> Table | None:
    """The settings of the jobs that are not the same in all of them."""
    values = [{one.key: one.value for one in run.settings} for run in runs]
    keys = dict.fromkeys(key for found in values for key in found)
    rows = [
        [key, *(found.get(key, "–") for found in values)]
        for key in keys
        if key not in NEVER_COMPARED and len({found.get(key) for found in values}) > 1
    ]
    head = ["setting", *(run.label for run in runs)]
    return Table("Settings that differ", head, rows, names=len(head)) if rows and len(runs) > 1 else None
