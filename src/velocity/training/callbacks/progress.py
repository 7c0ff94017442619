"""Progress on standard error: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_SECONDS = 10.0


class ProgressReport:
    """Steps done, loss, tokens a second and the time that remains."""

    def __init__(self, name: str, total: int, done: int) -> None:
        self.console = Console(stderr=True)
        self.total, self.started, self.began_at, self.last = total, time.monotonic(), done, 0.0
        self.bar: Progress | None = None
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[now]}"),
            )
            self.bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console)
            self.task = self.bar.add_task(name, total=total, completed=done, now="")
            self.bar.start()

    def on_step(self, line: Mapping[str, float]) -> None:
        """Tell a step's numbers."""
        step = int(line["step"])
        now = f"loss {line['loss']:.4f}  {line['tokens_per_second']:,.0f} tokens/s"
        if self.bar is not None:
            self.bar.update(self.task, completed=step, now=now)
        elif time.monotonic() - self.last >= LINE_SECONDS or step == self.total:
            self.last = time.monotonic()
            left = (self.last - self.started) / (step - self.began_at) * (self.total - step)
            print(f"step {step}/{self.total}  {now}  {left:,.0f} s left", file=sys.stderr, flush=True)

    def on_eval(self, step: int, results: Mapping[str, Mapping[str, float]]) -> None:
        """Tell an evaluation's numbers."""
        found = "  ".join(f"{name}: perplexity {result['perplexity']:.2f}" for name, result in results.items())
        self.console.print(f"step {step}  {found}", highlight=False)

    def close(self) -> None:
        """Write what is left, and end."""
        if self.bar is not None:
            self.bar.stop()
