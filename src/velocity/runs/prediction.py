"""What a run was planned to take and what it took, in its plan.json. It knows no planner and no engine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from velocity.files import write_atomically

WARM_STEPS = 2  # the first steps allocate, and are slow
PROBE_STEPS = 5  # after so many, what was planned is held against what was measured


def measured(lines: Sequence[Mapping[str, Any]]) -> tuple[float, float] | None:
    """The highest memory of a rank in bytes, and tokens a second; None before there are enough steps to tell."""
    steps = [line for line in lines if "loss" in line]
    if len(steps) <= WARM_STEPS:
        return None
    return max(line["memory_gib"] for line in steps) * 2**30, median(
        line["tokens_per_second"] for line in steps[WARM_STEPS:]
    )


def compare(plan: Mapping[str, Any], memory_bytes: float, tokens_per_second: float) -> dict[str, Any]:
    """Predicted against measured; `plan` is the content of plan.json."""
    chosen = plan.get("chosen") or {}
    predicted, speed = chosen.get("device_bytes"), chosen.get("tokens_per_second")
    return {
        "predicted_bytes": predicted,
        "measured_bytes": round(memory_bytes),
        "memory_ratio": round(memory_bytes / predicted, 4) if predicted else None,
        "predicted_tokens_per_second": speed,
        "measured_tokens_per_second": round(tokens_per_second, 1),
        "speed_ratio": round(tokens_per_second / speed, 4) if speed else None,
    }


def record(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """plan.json says what was measured; it stays as it is where there is no plan, or nothing to tell yet."""
    found = measured(lines)
    if found is None or not path.is_file():
        return
    plan = json.loads(path.read_text("utf-8"))
    write_atomically(path, json.dumps({**plan, "measured": compare(plan, *found)}, indent=1) + "\n")
