"""What a run did, read from its folder alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from velocity.config.resolved import is_resolved, read_resolved
from velocity.distributed import failure
from velocity.errors import UserError
from velocity.training.run_folder import RunFolder

BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 60


def summarise(path: Path) -> dict[str, Any]:
    """The run's state, its numbers and its evaluations before and after; UserError where the folder is no run."""
    run = RunFolder(path)
    if not is_resolved(run.job):
        raise UserError("not a run folder: it has no job.yaml of a run", str(path), "give the output folder of a job")
    job, lines = read_resolved(run.job), [line for line in run.lines() if "loss" in line]
    busy = sum(line["seconds"] for line in lines)
    processed = sum(line["tokens_per_second"] * line["seconds"] for line in lines)
    return {
        "run": str(path),
        "task": job.task,
        "model": job.model.path,
        "state": run.status(),
        "steps": len(lines),
        "tokens_trained_on": sum(line["tokens"] for line in lines),
        "losses": [line["loss"] for line in lines],
        "tokens_per_second": processed / busy if busy else None,
        "seconds": busy,
        "memory_gib": max((line["memory_gib"] for line in lines), default=None),
        "evaluations": {name: {"before": one, "after": other} for name, (one, other) in run.evaluations().items()},
        "cause": failure.cause(run.failures),
    }


def print_summary(summary: dict[str, Any]) -> None:
    """The summary for a person, on standard output."""
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)  # a path may hold brackets
    console.print(f"{summary['run']}: {summary['task']} of {summary['model']}, {summary['state']['state']}")
    if summary["cause"]:
        console.print(f"  cause: {summary['cause']['what']}")
    losses = summary["losses"]
    if not losses:
        console.print("no step was done yet")
        return
    console.print(
        f"{summary['steps']:,} steps, {summary['tokens_trained_on']:,} tokens trained on, {summary['seconds']:,.0f} s, "
        f"{summary['tokens_per_second']:,.0f} tokens/s, {summary['memory_gib']:.1f} GiB"
    )
    console.print(f"loss {losses[0]:.4f} {sparkline(losses)} {losses[-1]:.4f}")
    if summary["evaluations"]:
        table = Table("held-out set", "perplexity before", "after", "change")
        for name, found in summary["evaluations"].items():
            before, after = found["before"]["perplexity"], found["after"]["perplexity"]
            table.add_row(name, f"{before:.2f}", f"{after:.2f}", f"{after / before - 1:+.1%}")
        console.print(table)


def sparkline(values: Sequence[float]) -> str:
    """At most 60 blocks, each the mean of its share of the values, between the lowest and the highest of them."""
    width = min(WIDTH, len(values))
    edges = [round(i * len(values) / width) for i in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in zip(edges, edges[1:], strict=False)]
    low, span = min(means), (max(means) - min(means)) or 1.0
    return "".join(BLOCKS[round((mean - low) / span * (len(BLOCKS) - 1))] for mean in means)
