"""metrics.jsonl: one line a step, whole lines only."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from velocity.checkpoints.report import Report


class JsonlMetrics:
    """Appends to the run folder's metrics.jsonl."""

    def __init__(self, path: Path) -> None:
        self.stream = path.open("a", encoding="utf-8")

    def on_step(self, line: Mapping[str, Any]) -> None:
        """Tell a step's numbers."""
        self._write(line)

    def on_eval(self, step: int, results: Mapping[str, Mapping[str, float]]) -> None:
        """Tell an evaluation's numbers."""
        self._write({"step": step, "eval": results})

    def _write(self, line: Mapping[str, object]) -> None:
        self.stream.write(json.dumps(_finite(line), allow_nan=False) + "\n")
        self.stream.flush()

    def on_phase(self, what: str) -> None:
        """Keep nothing of it."""

    def on_save(self, report: Report) -> None:
        """Tell how long a checkpoint took, and how large it is, or why there is none."""
        facts = {name: value for name, value in asdict(report).items() if name != "step" and value != ""}
        self._write({"step": report.step, "checkpoint": facts})

    def close(self) -> None:
        """Write what is left, and end."""
        self.stream.close()


def _finite(value: Any) -> Any:
    """The value with null in place of NaN and infinity, which are no JSON."""
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
