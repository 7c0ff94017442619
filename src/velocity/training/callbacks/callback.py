"""The contract of a callback: it hears of steps and evaluations, and never changes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from velocity.checkpoints.report import Report


class Callback(Protocol):
    """Something that a run's numbers are told to."""

    def on_step(self, line: Mapping[str, Any]) -> None:
        """A step is done; `line` holds the fields of metrics.jsonl.

        They are numbers, but for `not_finite`: the records whose loss was not, where there are any.
        """

    def on_eval(self, step: int, results: Mapping[str, Mapping[str, float]]) -> None:
        """The evaluation sets were scored after `step`: the loss and the other numbers of each."""

    def on_phase(self, what: str) -> None:
        """Something that takes a while and is no step begins: "evaluating", "saving a checkpoint"."""

    def on_save(self, report: Report) -> None:
        """A checkpoint has been written, or could not be; it may be a step or more ago."""

    def close(self) -> None:
        """The run has ended, well or not."""
