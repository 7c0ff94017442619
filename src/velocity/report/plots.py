"""Numbers become pictures: inline SVG that takes its colours and its font from the page. It knows no run.

Matplotlib draws in colours that stand for the page's own ones, which change with light and dark; see `PALETTE`.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from velocity.report.series import Series
from velocity.report.spelling import number, short

INK, MUTED, GRID = "#010101", "#020202", "#030303"
COLOURS = tuple(f"#0a000{digit}" for digit in range(8))  # of runs, or of evaluation sets: as many as eyes keep apart
PALETTE = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--line)"} | {
    colour: f"var(--c{place})" for place, colour in enumerate(COLOURS)
}
WIDTH, HEIGHT = 380, 220  # the page's pixels: what a phone shows as it is
ROW, BETWEEN = 26, 15  # pixels: of a row's name, and of each dot below it
POINT = 72  # a unit of the SVG is a point for matplotlib, and a pixel for the page
OUTSIDE = 3.0  # a level so many times beyond the values is not drawn: it would flatten them
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "velocity", "font.size": 11, "font.family": ["DejaVu Sans"],
    "axes.edgecolor": GRID, "axes.labelcolor": MUTED, "text.color": INK, "xtick.color": MUTED, "ytick.color": MUTED,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.7,
    "xtick.major.size": 0, "ytick.major.size": 0, "xtick.minor.size": 0, "ytick.minor.size": 0,
    "axes.axisbelow": True, "path.simplify": False, "axes.xmargin": 0.02, "text.parse_math": False,
}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One curve: of what colour (its place among them), how it is drawn, and between what it may be."""

    series: Series
    colour: int = 0
    kind: Literal["line", "faint", "points"] = "line"
    band: tuple[Series, Series] | None = None  # the lowest and the highest, at the same steps


@dataclass(frozen=True)
class Dot:
    """A value with its interval, where it has one."""

    value: float
    low: float | None = None
    high: float | None = None
    colour: int = 0


@dataclass(frozen=True)
class Level:
    """A value that was foreseen."""

    value: float
    words: str = "planned"


def curves(
    name: str, alt: str, lines: Sequence[Line], *, level: Level | None = None, marks: Sequence[float] = (),
    log: bool = False,
) -> str:  # fmt: skip
    """Lines over steps; a dashed one at `level`, and a dotted one down from each step of `marks`.

    `name` is the figure's own on its page, `alt` what it says to those who do not see it.
    """
    with mpl.rc_context(STYLE):
        figure, axes = _canvas(WIDTH, HEIGHT)
        for line in lines:
            _draw(axes, line)
        known = np.concatenate([np.zeros(0), *(line.series.known for line in lines)])
        if level is not None and is_near(level.value, known):
            axes.axhline(level.value, color=MUTED, linewidth=1.2, linestyle=(0, (5, 3)))
        for mark in marks:
            axes.axvline(mark, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
        _scale(axes, log=log)
        return _svg(figure, name, alt)


def is_near(level: float, values: Any) -> bool:
    """True where a level can be drawn among the values without flattening them."""
    return bool(len(values) and values.min() / OUTSIDE <= level <= values.max() * OUTSIDE)


def intervals(name: str, alt: str, rows: Sequence[tuple[str, Sequence[Dot]]]) -> str:
    """For each row its name, and below it a dot a run with its interval; all rows share a scale."""
    height = 40 + sum(ROW + BETWEEN * len(dots) for _, dots in rows)
    with mpl.rc_context(STYLE):
        figure, axes = _canvas(WIDTH, height, left=10)
        axes.spines["left"].set_visible(False)
        axes.set_yticks([])
        place = 0.0
        for label, dots in rows:
            axes.text(0, place + 8, label, transform=axes.get_yaxis_transform(), va="center", color=INK)
            for number_, dot in enumerate(dots):
                _dot(axes, dot, place + ROW + 4 + BETWEEN * number_)
            place += ROW + BETWEEN * len(dots)
        axes.set_ylim(place + 4, -2)
        axes.margins(x=0.06)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        return _svg(figure, name, alt)


def histogram(name: str, alt: str, edges: Sequence[float], counts: Sequence[int], *, limit: float | None = None) -> str:
    """Bars over ranges; a dashed line at `limit`."""
    with mpl.rc_context(STYLE):
        figure, axes = _canvas(WIDTH, HEIGHT)
        left = np.asarray(edges[:-1], dtype=np.float64)
        axes.bar(left, counts, np.diff(edges) * 0.92, align="edge", color=COLOURS[0])
        axes.grid(visible=False, axis="x")
        if limit is not None and is_near(limit, np.asarray(edges[-1:])):
            axes.axvline(limit, color=MUTED, linewidth=1.2, linestyle=(0, (5, 3)))
        _scale(axes, log=False)
        return _svg(figure, name, alt)


def _canvas(width: float, height: float, left: float = 46) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width / POINT, height / POINT), facecolor="none")
    FigureCanvasSVG(figure)
    box = (left / width, 26 / height, 1 - (left + 10) / width, 1 - 36 / height)
    axes = figure.add_axes(box, facecolor="none")
    return figure, axes


def _draw(axes: Axes, line: Line) -> None:
    colour = COLOURS[line.colour % len(COLOURS)]
    if line.kind == "faint":
        axes.plot(line.series.x, line.series.y, color=colour, linewidth=0.8, alpha=0.35)
        return
    if line.band is not None:
        low, high = line.band
        axes.fill_between(low.x, low.y, high.y, color=colour, alpha=0.15, linewidth=0)
    alone = len(line.series) == 1  # a line of one point is none
    marker = "o" if line.kind == "points" or alone else None
    axes.plot(line.series.x, line.series.y, color=colour, linewidth=1.6, marker=marker, markersize=4)


def _dot(axes: Axes, dot: Dot, y: float) -> None:
    colour = COLOURS[dot.colour % len(COLOURS)]
    if dot.low is not None and dot.high is not None:
        axes.plot([dot.low, dot.high], [y, y], color=colour, linewidth=2, solid_capstyle="round", alpha=0.6)
    axes.plot([dot.value], [y], color=colour, marker="o", markersize=6)


def _scale(axes: Axes, *, log: bool) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=5))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4, min_n_ticks=3))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def _svg(figure: Figure, name: str, alt: str) -> str:
    """The figure as an element of a page: colours and font are the page's, its ids nobody else's there."""
    written = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph that our font lacks the page's has
        figure.savefig(written, format="svg", metadata=nothing)
    text = written.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"<[^>]*>", lambda tag: _of_page(tag[0], name), text)
    size = f'<svg role="img" aria-label="{escape(alt)}" class="plot"'
    return re.sub(r'<svg width="[^"]*" height="[^"]*"', lambda _: size, text, count=1)


def _of_page(tag: str, name: str) -> str:
    """A tag of a figure, as the page wants it; texts between tags stay as they are."""
    tag = tag.replace("xlink:href", "href").replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "")
    tag = re.sub(r"font-family: [^;\"]*;?", "", tag)
    tag = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", tag)
    tag = re.sub(r"#[0-9a-f]{6}", lambda colour: PALETTE.get(colour[0], colour[0]), tag)
    return re.sub(r"\s+", " ", re.sub(r"(\d\.\d\d)\d+", r"\1", tag))


def said(what: str, series: Series) -> str:
    """A curve in words."""
    known = series.known
    if not len(known):
        return f"{what}: no value is finite"
    first, last = number(float(known[0])), number(float(known[-1]))
    low, high = number(float(known.min())), number(float(known.max()))
    return f"{what} from {first} to {last}, between {low} and {high}, over {len(series):,} points"
