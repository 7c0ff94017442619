"""After the first steps, plan.json says what was measured beside what was predicted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from velocity.checkpoints.report import Report
from velocity.runs.prediction import PROBE_STEPS, record


class PredictionCheck:
    """Listens to the first steps of an attempt."""

    def __init__(self, plan: Path) -> None:
        self.plan = plan
        self.lines: list[Mapping[str, float]] = []

    def on_step(self, line: Mapping[str, float]) -> None:
        """The last of the first steps is written down with those before."""
        if len(self.lines) < PROBE_STEPS:
            self.lines.append(line)
            if len(self.lines) == PROBE_STEPS:
                record(self.plan, self.lines)

    def on_eval(self, step: int, results: Mapping[str, Mapping[str, float]]) -> None:
        """Nothing."""

    def on_phase(self, what: str) -> None:
        """Nothing."""

    def on_save(self, report: Report) -> None:
        """Nothing."""

    def close(self) -> None:
        """A run of few steps tells what it has."""
        if len(self.lines) < PROBE_STEPS:
            record(self.plan, self.lines)
