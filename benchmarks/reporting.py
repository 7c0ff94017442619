"""What every benchmark prints and keeps: a table, ratios against targets, one JSON line. It measures nothing."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results")
PACKAGES = ("ProfoundVelocity", "torch", "deepspeed", "transformers", "tokenizers", "datasets", "trl", "accelerate")


@dataclass(frozen=True)
class Figure:
    """One number that answers the question, and the limit it is held against: at least, or at most."""

    name: str
    value: float
    unit: str = "x"
    target: float | None = None
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the figure reaches its target; None where it has none."""
        if self.target is None:
            return None
        return self.value <= self.target if self.at_most else self.value >= self.target

    def cells(self) -> list[str]:
        """Name, figure, target and whether it is met, as text."""
        sign = "≤" if self.at_most else "≥"
        target = "" if self.target is None else f"{sign} {self.target:g} {self.unit}"
        answer = {None: "", True: "yes", False: "NO"}[self.met]
        return [self.name, f"{self.value:.3g} {self.unit}", target, answer]


@dataclass(frozen=True)
class Report:
    """What one benchmark found."""

    benchmark: str
    question: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    figures: Sequence[Figure]
    notes: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """The report as plain values, without the machine it was measured on."""
        figures = [
            {
                "name": f.name,
                "value": round(f.value, 4),
                "unit": f.unit,
                "target": f.target,
                "at_most": f.at_most,
                "met": f.met,
            }
            for f in self.figures
        ]
        rows = [dict(zip(self.columns, row, strict=True)) for row in self.rows]
        named = {"benchmark": self.benchmark, "question": self.question, "figures": figures, "rows": rows}
        return {**named, "notes": list(self.notes), **self.facts}


FIGURE_COLUMNS = ("figure", "measured", "target", "met")


def ratio(ours: float, theirs: float) -> float:
    """How many times `theirs` goes into `ours`; ValueError where either is not a positive measurement."""
    if ours <= 0 or theirs <= 0:
        raise ValueError(f"nothing was measured: {ours} against {theirs}")
    return ours / theirs


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An aligned table: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    return "\n".join(_lines([columns, ["-" * width for width in widths], *rows], widths))


def _lines(rows: Sequence[Sequence[str]], widths: Sequence[int]) -> Iterator[str]:
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        yield "  ".join(cells).rstrip()


def machine() -> dict[str, Any]:
    """Hardware, versions, commit, time and the load of others: what a number is worth depends on them."""
    from velocity.planner.hardware import detect

    versions = {name: _version(name) for name in PACKAGES}
    hardware = {**detect().describe(), "processor": _processor(), "load_average": round(os.getloadavg()[0], 2)}
    return {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "hardware": hardware, "versions": versions, **_commit()}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _commit() -> dict[str, str]:
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd=RESULTS.parent)
    except OSError:
        return {"git_commit": ""}
    return {"git_commit": answer.stdout.strip()}


def parser(question: str) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    options = argparse.ArgumentParser(description=question)
    options.add_argument("--save", action="store_true", help="append the result to benchmarks/results/NAME.json")
    options.add_argument("--quick", action="store_true", help="a smoke run: it shows that all works, no figure counts")
    return options


def publish(report: Report, before: Mapping[str, Any], *, save: bool) -> None:
    """The report is printed, the JSON line last; where `save`, it is appended to the benchmark's results.

    `before` is `machine()`, taken before the measurement: later, the load would be our own.
    """
    print(f"\n{report.question}\n\n{table(report.columns, report.rows)}\n")
    print(table(FIGURE_COLUMNS, [figure.cells() for figure in report.figures]))
    for note in report.notes:
        print(f"- {note}")
    entry = {**report.describe(), **before}
    if save:
        append(RESULTS / f"{report.benchmark}.json", entry)
    print(json.dumps(entry), flush=True)


def append(path: Path, entry: Mapping[str, Any]) -> None:
    """The file's JSON list ends with the entry."""
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = json.loads(path.read_text()) if path.is_file() else []
    path.write_text(json.dumps([*entries, entry], indent=1) + "\n")
