"""What an evaluate job's run found, read from its folder alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from velocity.distributed import failure
from velocity.evaluation.words import caution
from velocity.runs.folder import is_share
from velocity.runs.opened import open_run


def summarise(path: Path) -> dict[str, Any]:
    """The run's state, and its figures once it is complete; UserError where the folder is no run."""
    run, job, status = open_run(path)
    told = [line for line in run.lines() if "rows_per_second" in line]
    return {
        "run": str(path),
        "task": job.task,
        "model": job.model.path,
        "engine": job.generation.engine,
        "state": status,
        "rows_per_second": told[-1]["rows_per_second"] if told else None,
        "memory_gib": max((line["memory_gib"] for line in told), default=None),
        "figures": json.loads(run.evaluation.read_text()) if run.evaluation.is_file() else None,
        "cause": failure.cause(run.failures),
    }


def print_summary(summary: dict[str, Any]) -> None:
    """The summary for a person, on standard output."""
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)  # a path may hold brackets
    console.print(f"{summary['run']}: evaluate {summary['model']}, {summary['state']['state']}")
    if summary["cause"]:
        console.print(f"  cause: {summary['cause']['what']}")
    figures = summary["figures"]
    if figures is None:
        console.print("no figures yet: they come when every row is done")
        return
    if figures["retrieval"]:
        console.print(f"with {figures['retrieval']['passages']} passages of {figures['retrieval']['path']} a question")
    table = Table("set", "rows", "measure", "value", "95 % interval")
    for name, found in {**figures["sets"], **figures["benchmarks"]}.items():
        for measure, values in found["measures"].items():
            low, high = (number(measure, values[end]) for end in ("low", "high"))
            table.add_row(
                name, f"{found['rows']:,}", words_of(measure), number(measure, values["value"]), f"{low} to {high}"
            )
    console.print(table)


def words_of(measure: str) -> str:
    """A measure's name for people."""
    return measure.replace("_", " ")


def number(measure: str, value: float | None) -> str:
    """A measure's value for people: a share in per cent."""
    if value is None:
        return "–"
    return f"{value:.1%}" if is_share(measure) else f"{value:,.3f}" if value < 10 else f"{value:,.2f}"


def print_compared(compared: Mapping[str, Any]) -> None:
    """How a run differs from another one, for a person."""
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    console.print(f"\n{compared['run']} against {compared['with']}, over the same rows:")
    for name, found in compared["sets"].items():
        for measure, values in found.items():
            console.print(f"  {name}, {words_of(measure)}: {values['words']}")
    if warning := caution(sum(map(len, compared["sets"].values()))):
        console.print(warning)
