"""Which pictures a report has, and what is in them. It knows no SVG and no page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from velocity.report import plots
from velocity.report.compare import measures
from velocity.report.facts import Run
from velocity.report.headline import Points, evaluations, interval, measure
from velocity.report.plots import Dot, Level, Line
from velocity.report.series import MOST_POINTS, Series, is_steep, series_of, smooth, thin
from velocity.report.spelling import cut, number
from velocity.report.table import Figure
from velocity.runs.folder import MEASURES, is_share

CURVES = {
    "loss": "Loss", "learning_rate": "Learning rate", "grad_norm": "Gradient norm",
    "tokens_per_second": "Throughput, tokens a second", "rows_per_second": "Throughput, rows a second",
    "memory_gib": "Memory, GiB", "mfu": "Share of the GPU’s arithmetic (MFU)",
    **{key: words.capitalize() for key, words in MEASURES.items()},
}  # fmt: skip
RAW = ("learning_rate", "memory_gib")  # are no noise: they are shown as they are
LABEL_LETTERS = 52  # of a name in a picture
MOST_RUNS = len(plots.COLOURS)


def curves(runs: Sequence[Run]) -> list[Figure]:
    """One figure a quantity over the steps, with every run that tells it."""
    figures = []
    for key, title in CURVES.items():
        told = [(place, run, series_of(_lines(run, key), key)) for place, run in enumerate(runs[:MOST_RUNS])]
        told = [one for one in told if len(one[2].known)]
        if told:
            figures.append(_curve(key, title, told, alone=len(runs) == 1))
    return figures


def _lines(run: Run, key: str) -> Sequence[Mapping[str, Any]]:
    """The lines that tell of steps; of a run without any, those that tell of rows."""
    return run.steps or run.rows


def _curve(key: str, title: str, told: Sequence[tuple[int, Run, Series]], *, alone: bool) -> Figure:
    lines: list[Line] = []
    for place, _, series in told:
        trend = None if key in RAW else smooth(series)
        if trend is None:
            lines.append(Line(thin(series), place))
        else:
            lines += [Line(thin(series), place, "faint")] if alone else []
            lines.append(Line(thin(trend), place))
    level = _level(key, told[0][1]) if alone else None
    known = np.concatenate([series.known for _, _, series in told])
    log = key in ("grad_norm", "loss") and is_steep(known)
    marks = [step for step in told[0][1].restarts if step is not None] if alone else []
    alt = "; ".join(plots.said(f"{title} of {run.label}" if not alone else title, series) for _, run, series in told)
    svg = plots.curves(f"f-{key}", alt, lines, level=level, marks=marks, log=log)
    legend = [] if alone else [(run.label, place) for place, run, _ in told]
    caption = _caption(key, told[0][2], level, marks) if alone else ""
    return Figure(title + (" (logarithmic)" if log else ""), svg, caption, legend)


def _level(key: str, run: Run) -> Level | None:
    """What the plan foresaw."""
    chosen = run.plan.get("chosen") or {}
    value, unit = {
        "tokens_per_second": (chosen.get("tokens_per_second"), 1),
        "memory_gib": (chosen.get("device_bytes"), 2**30),
    }.get(key, (None, 1))
    return Level(value / unit) if isinstance(value, int | float) and value > 0 else None


def _caption(key: str, series: Series, level: Level | None, marks: Sequence[float]) -> str:
    first, last = number(float(series.known[0])), number(float(series.known[-1]))
    said = f"median {number(float(np.median(series.known)))}" if key.endswith("_second") else f"{first} → {last}"
    if lost := len(series) - len(series.known):
        said += f"; {lost:,} not finite"
    if level is not None:
        drawn = "dashed" if plots.is_near(level.value, series.known) else "outside of the picture"
        said += f"; planned {number(level.value)} ({drawn})"
    if marks and key == "loss":
        said += "; dotted: a restart"
    return said


def evaluation_curves(runs: Sequence[Run]) -> list[Figure]:
    """What was measured during training: of one run a figure a measure, of several one a set and measure."""
    found = [(run, evaluations(run)) for run in runs[:MOST_RUNS]]
    keys = list(dict.fromkeys(key for _, points in found for key in points))
    if len(runs) > 1:
        return [figure for place, key in enumerate(keys) if (figure := _set_of_runs(f"s-{place}", key, found))]
    figures = []
    for key in dict.fromkeys(key for _, key in keys):
        sets = [(name, points) for (name, one), points in found[0][1].items() if one == key][:MOST_RUNS]
        if max(len(points) for _, points in sets) > 1:
            figures.append(_points(f"e-{key}", MEASURES[key].capitalize(), sets))
    return figures


def _set_of_runs(name: str, key: tuple[str, str], found: Sequence[tuple[Run, Any]]) -> Figure | None:
    told = [(run.label, points.get(key, [])) for run, points in found]
    return _points(name, f"{key[0]}: {MEASURES[key[1]]}", told) if any(len(points) > 1 for _, points in told) else None


def _points(name: str, title: str, told: Sequence[tuple[str, Points]]) -> Figure:
    lines, alts, legend = [], [], []
    for place, (label, points) in enumerate(told):
        values, low, high = (
            series_of([{"step": step, "value": found[part]} for step, found in points], "value") for part in range(3)
        )
        if len(values.known):
            band = (low, high) if len(low.known) and len(low) <= MOST_POINTS else None
            lines.append(Line(thin(values), place, "points" if len(values) <= 60 else "line", band))
            alts.append(plots.said(label, values))
            legend.append((label, place))
    log = is_steep(np.concatenate([line.series.known for line in lines]))
    svg = plots.curves(name, f"{title} by step: {'; '.join(alts)}", lines, log=log)
    caption = "shaded: 95 % intervals" if any(line.band for line in lines) else ""
    return Figure(title + (" (logarithmic)" if log else ""), svg, caption, legend)


def intervals(runs: Sequence[Run]) -> list[Figure]:
    """One figure a measure: a row a set, in it a dot a run with its interval."""
    shown = [(place, run) for place, run in enumerate(runs[:MOST_RUNS]) if run.evaluation]
    found = [(place, run, dict(measures(run.evaluation))) for place, run in shown]
    keys = list(dict.fromkeys(key for _, _, values in found for key in values))
    figures = []
    for number_, key in enumerate(dict.fromkeys(what for _, what in keys)):
        rows, alts = [], []
        for name in dict.fromkeys(one for one, what in keys if what == key):
            dots = list(_dots(found, (name, key)))
            if dots:
                rows.append((cut(name, LABEL_LETTERS), [dot for dot, _ in dots]))
                alts += [f"{name}, {said}" for _, said in dots]
        if rows:
            figures.append(_measured(f"i-{number_}", key, rows, alts, [(run.label, place) for place, run in shown]))
    return figures


def _dots(found: Sequence[tuple[int, Run, Any]], key: tuple[str, str]) -> Iterator[tuple[Dot, str]]:
    scale = 100.0 if is_share(key[1]) else 1.0
    for place, run, values in found:
        value = values.get(key, {})
        if isinstance(value.get("value"), int | float):
            low, high = value.get("low"), value.get("high")
            known = low is not None and high is not None
            said = f"{run.label}: {measure(key[1], value['value'])}, {interval(key[1], value)}"
            dot = Dot(scale * value["value"], scale * low if known else None, scale * high if known else None, place)
            yield dot, said


def _measured(name: str, key: str, rows: Any, alts: Sequence[str], legend: Sequence[tuple[str, int]]) -> Figure:
    words = key.replace("_", " ").capitalize() + (", %" if is_share(key) else "")
    svg = plots.intervals(name, f"{words}, with 95 % intervals: {'; '.join(alts)}", rows)
    return Figure(words, svg, "bars: 95 % intervals", legend if len(legend) > 1 else ())


def histogram(name: str, edges: Sequence[float], counts: Sequence[int], *, limit: float | None) -> Figure:
    """How long the sequences are."""
    total = sum(counts)
    alt = f"Histogram of the lengths of {total:,} sequences, from {edges[0]:,.0f} to {edges[-1]:,.0f} tokens"
    svg = plots.histogram(name, alt, edges, counts, limit=limit)
    caption = f"{total:,} sequences" + (f"; dashed: data.sequence_length {limit:,.0f}" if limit else "")
    return Figure("Lengths, in tokens", svg, caption)
