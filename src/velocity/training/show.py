"""What a run did, read from its folder alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from velocity.distributed import failure
from velocity.runs.opened import open_run
from velocity.runs.sparkline import sparkline

# What of each step is shown as a line of blocks beside the loss: its name for people, and how its ends are written.
CURVES = {
    "learning_rate": ("learning rate", ".3g"), "grad_norm": ("gradient norm", ".3g"),
    "tokens_per_second": ("tokens/s", ",.0f"), "memory_gib": ("memory in GiB", ".1f"),
}  # fmt: skip


def summarise(path: Path) -> dict[str, Any]:
    """The run's state, its numbers and its evaluations before and after; UserError where the folder is no run."""
    run, job, status = open_run(path)
    lines = [line for line in run.lines() if "loss" in line]
    saves = [line["checkpoint"]["seconds"] for line in run.lines() if "checkpoint" in line]
    busy = sum(line["seconds"] for line in lines)
    processed = sum(line["tokens_per_second"] * line["seconds"] for line in lines)
    return {
        "run": str(path),
        "task": job.task,
        "model": job.model.path,
        "state": status,
        "steps": len(lines),
        "tokens_trained_on": sum(line["tokens"] for line in lines),
        "losses": [line["loss"] for line in lines],
        "curves": {name: [line.get(name) for line in lines] for name in CURVES},
        "tokens_per_second": processed / busy if busy else None,
        "seconds": busy,
        "memory_gib": max((line["memory_gib"] for line in lines), default=None),
        "save_seconds": max(saves, default=None),  # the longest
        "evaluations": {name: {"before": one, "after": other} for name, (one, other) in run.evaluations().items()},
        "results": run.results(),
        "evaluated": sum("eval" in line for line in run.lines()),
        "skipped": lines[-1]["skipped"] if lines else 0,
        "cause": failure.cause(run.failures),
    }


def print_summary(summary: dict[str, Any]) -> None:
    """The summary for a person, on standard output."""
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)  # a path may hold brackets
    console.print(f"{summary['run']}: {summary['task']} of {summary['model']}, {summary['state']['state']}")
    if summary["cause"]:
        console.print(f"  cause: {summary['cause']['what']}")
    if "why" in summary["state"]:
        console.print(f"  {summary['state']['why'].splitlines()[0]}")
    losses = summary["losses"]
    if not losses:
        console.print("no step was done yet")
        return
    console.print(
        f"{summary['steps']:,} steps, {summary['tokens_trained_on']:,} tokens trained on, {summary['seconds']:,.0f} s, "
        f"{summary['tokens_per_second']:,.0f} tokens/s, {summary['memory_gib']:.1f} GiB"
    )
    if summary["save_seconds"] is not None:
        console.print(f"a checkpoint was written within {summary['save_seconds']:,.1f} s")
    if summary["skipped"]:
        console.print(f"{summary['skipped']:,} steps were skipped: their gradient was not finite")
    console.print(f"loss {_number(losses[0], 4)} {sparkline(losses)} {_number(losses[-1], 4)}")
    for name, (words, form) in CURVES.items():
        values = summary["curves"][name]
        first, last = ("not finite" if one is None else format(one, form) for one in (values[0], values[-1]))
        console.print(f"{words} {first} {sparkline(values)} {last}")
    if summary["results"]:
        table = Table("held-out set", "measure", "before", "after", "change")
        for name, what, before, after in summary["results"]:
            later = (str(after), _change(what, before.value, after.value)) if summary["evaluated"] > 1 else ("", "")
            table.add_row(name, what, str(before), *later)
        console.print(table)


def _change(what: str, before: float | None, after: float | None) -> str:
    """Of a perplexity as a share of what it was, of anything else as the difference."""
    if before is None or after is None:
        return ""
    return f"{after / before - 1:+.1%}" if what == "perplexity" else f"{after - before:+.2f}"


def _number(value: float | None, digits: int) -> str:
    return "not finite" if value is None else f"{value:.{digits}f}"
