"""What a generate job's run did, read from its folder alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from velocity.distributed import failure
from velocity.runs.opened import open_run
from velocity.runs.sparkline import sparkline


def summarise(path: Path) -> dict[str, Any]:
    """The run's state, its rates and the spread of its lengths; UserError where the folder is no run."""
    run, job, status = open_run(path)
    lines = run.lines()
    told = [line for line in lines if "rows_per_second" in line]
    finished = [line["completed"] for line in lines if "completed" in line]
    return {
        "run": str(path),
        "task": job.task,
        "model": job.model.path,
        "engine": job.generation.engine,
        "state": status,
        "rows": told[-1]["step"] if told else 0,
        "rows_per_second": told[-1]["rows_per_second"] if told else None,
        "tokens_per_second": told[-1]["tokens_per_second"] if told else None,
        "curve": [line["tokens_per_second"] for line in told],
        "seconds_left": told[-1].get("seconds_left") if told else None,
        "memory_gib": max((line["memory_gib"] for line in told), default=None),
        "completed": finished[-1] if finished else None,
        "result": str(run.result) if run.result else None,
        "cause": failure.cause(run.failures),
    }


def print_summary(summary: dict[str, Any]) -> None:
    """The summary for a person, on standard output."""
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)  # a path may hold brackets
    console.print(f"{summary['run']}: generate with {summary['model']}, {summary['state']['state']}")
    if summary["cause"]:
        console.print(f"  cause: {summary['cause']['what']}")
    if summary["rows_per_second"] is None:
        console.print("no row was completed yet")
        return
    left = f", {summary['seconds_left']:,.0f} s left" if summary["seconds_left"] else ""
    console.print(
        f"{summary['rows']:,} rows by engine {summary['engine']}, {summary['rows_per_second']:.2f} rows/s, "
        f"{summary['tokens_per_second']:,.0f} new tokens/s, {summary['memory_gib']:.1f} GiB{left}"
    )
    if len(curve := summary["curve"]) > 1:
        console.print(f"new tokens/s {curve[0]:,.0f} {sparkline(curve)} {curve[-1]:,.0f}")
    if (done := summary["completed"]) is None:
        return
    ends = ", ".join(f"{count:,} by {reason}" for reason, count in sorted(done["finish_reasons"].items()))
    console.print(f"{done['completions']:,} completions ended: {ends}")
    table = Table("tokens", *(f"{p} %" for p in done["prompt_tokens"]))
    for name in ("prompt_tokens", "completion_tokens"):
        table.add_row(name.partition("_")[0], *(f"{length:,}" for length in done[name].values()))
    console.print(table)
    console.print(f"→ {summary['result']}")
