"""Progress: a bar on a terminal, lines now and then elsewhere, and the same lines in log.txt."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from velocity.checkpoints.report import Report
from velocity.runs.folder import MEASURES
from velocity.secrets import scrub

LINE_SECONDS = 10.0
SHOWN = 4  # records in a warning


class ProgressReport:
    """Steps done, loss, tokens a second and the time that remains."""

    def __init__(self, folder: Path, total: int, done: int) -> None:
        self.console = Console(stderr=True)
        self.log = (folder / "log.txt").open("a", encoding="utf-8")
        self.total, self.started, self.began_at, self.last = total, time.monotonic(), done, 0.0
        self.bar: Progress | None = None
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[now]}"),
            )
            self.bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console)
            self.task = self.bar.add_task(folder.name, total=total, completed=done, now="")
            self.bar.start()

    def on_step(self, line: Mapping[str, Any]) -> None:
        """Tell a step's numbers."""
        step = int(line["step"])
        skipped = f"  {line['skipped']:.0f} skipped" if line.get("skipped") else ""
        if records := line.get("not_finite"):
            more = f" ({len(records) - SHOWN} more)" if len(records) > SHOWN else ""
            self._write(f"warning: step {step}: not finite: the loss of {', '.join(records[:SHOWN])}{more}", shown=True)
        now = f"loss {line['loss']:.4f}  {line['tokens_per_second']:,.0f} tokens/s{skipped}"
        if self.bar is not None:
            self.bar.update(self.task, completed=step, now=now)
        if time.monotonic() - self.last >= LINE_SECONDS or step == self.total:
            self.last = time.monotonic()
            left = (self.last - self.started) / (step - self.began_at) * (self.total - step)
            self._write(f"step {step}/{self.total}  {now}  {left:,.0f} s left", shown=self.bar is None)

    def on_eval(self, step: int, results: Mapping[str, Mapping[str, float]]) -> None:
        """Tell an evaluation's numbers."""
        found = "  ".join(
            f"{name}: {', '.join(f'{words} {result[key]:.2f}' for key, words in MEASURES.items() if key in result)}"
            for name, result in results.items()
        )
        self._write(f"step {step}  {found}", shown=True)

    def on_phase(self, what: str) -> None:
        """Tell what the next silence is for."""
        if self.bar is not None:
            self.bar.update(self.task, now=what)
        self._write(f"{what} …", shown=self.bar is None)

    def _write(self, text: str, *, shown: bool) -> None:
        """One line into log.txt, and to the person where the bar does not say it already."""
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {scrub(text)}", file=self.log, flush=True)
        if shown:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def on_save(self, report: Report) -> None:
        """Nothing."""

    def close(self) -> None:
        """Write what is left, and end."""
        if self.bar is not None:
            self.bar.stop()
        self.log.close()
