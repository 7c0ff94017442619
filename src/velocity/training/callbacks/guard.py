"""A tracker whose failure ends no run: it is said once, and the tracker hears no more. It knows no tracker by name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from velocity.checkpoints.report import Report
from velocity.training.callbacks.callback import Callback


class Guarded:
    """Passes on to another callback until that fails: days of training are worth more than their curve elsewhere."""

    def __init__(self, name: str, inner: Callback) -> None:
        self.name, self.inner, self.failed = name, inner, False

    def _try(self, call: Callable[..., None], *arguments: Any) -> None:
        if self.failed:
            return
        try:
            call(*arguments)
        except Exception as error:  # each tracker has errors of its own
            self.failed = True
            what = f"warning: {self.name} failed and hears no more; metrics.jsonl goes on: {error}"
            print(what, file=sys.stderr, flush=True)

    def on_step(self, line: Mapping[str, Any]) -> None:
        """Pass a step's numbers on; trackers take nothing else."""
        self._try(self.inner.on_step, {name: value for name, value in line.items() if not isinstance(value, list)})

    def on_eval(self, step: int, results: Mapping[str, Mapping[str, float]]) -> None:
        """Pass an evaluation's numbers on."""
        self._try(self.inner.on_eval, step, results)

    def on_phase(self, what: str) -> None:
        """Pass on what takes a while."""
        self._try(self.inner.on_phase, what)

    def on_save(self, report: Report) -> None:
        """Pass on how a checkpoint was written."""
        self._try(self.inner.on_save, report)

    def close(self) -> None:
        """Close the tracker, also one that failed."""
        self.failed = False
        self._try(self.inner.close)
