"""The plan is held against the first steps of an attempt, and against no later ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from velocity.training.callbacks.prediction import PredictionCheck


def told(folder: Path, steps: int) -> dict[str, Any]:
    """plan.json after a run of so many steps, of which the later ones are faster."""
    path = folder / "plan.json"
    path.write_text(json.dumps({"chosen": {"device_bytes": 2**30, "tokens_per_second": 10.0}}))
    check = PredictionCheck(path)
    for step in range(1, steps + 1):
        check.on_step({"step": step, "loss": 1.0, "memory_gib": 2.0, "tokens_per_second": float(step)})
    check.close()
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_five_steps_are_enough_and_later_ones_change_nothing(tmp_path: Path):
    first = told(tmp_path, 5)
    assert first["measured"]["measured_tokens_per_second"] == 4.0  # the median of 3, 4 and 5
    assert told(tmp_path, 50) == first


def test_a_short_run_tells_what_it_has(tmp_path: Path):
    assert told(tmp_path, 3)["measured"]["measured_tokens_per_second"] == 3.0
    assert "measured" not in told(tmp_path, 2)
