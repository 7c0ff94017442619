"""What runs taught: factors between predicted and measured, for each kind of machine. It knows no candidates."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from velocity.config.job import Job
from velocity.errors import UserError
from velocity.files import write_atomically
from velocity.planner.memory import Parts
from velocity.runs import prediction
from velocity.runs.folder import RunFolder

FILE = "calibration.json"
# Model states are counted exactly; what a measured total teaches is about the rest.
LEARNED = ("activations", "logits", "buffers", "allowance")
LEAST, MOST = 0.25, 4.0  # a factor beyond is a mistake of another kind


def place(job: Job) -> Path:
    """The file beside the job's cached data."""
    return Path(job.data.cache).expanduser() / FILE


def read(path: Path, kind: str) -> dict[str, float]:
    """What was learned of this kind of machine, by part, and `speed`; empty where nothing was."""
    known = _known(path).get(kind, {})
    factors: dict[str, float] = dict.fromkeys(LEARNED, known["memory"]) if "memory" in known else {}
    return factors | ({"speed": known["speed"]} if "speed" in known else {})


def _known(path: Path) -> dict[str, dict[str, float]]:
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def measured(run: RunFolder) -> tuple[float, float]:
    """The run's highest memory in bytes, and its tokens a second; UserError where it has not done enough steps."""
    found = prediction.measured(run.lines())
    if found is None:
        what = f"the run has not done more than {prediction.WARM_STEPS} steps: too few to learn from"
        raise UserError(what, str(run.path), "name another run")
    return found


def learn(path: Path, kind: str, predicted: Parts, speed: float, found: tuple[float, float]) -> Mapping[str, float]:
    """The factors of this kind of machine after one more run; the file holds them. `predicted` is uncalibrated.

    Each run counts as much as the ones before: the factors are geometric means.
    """
    states = predicted.parameters + predicted.gradients + predicted.optimizer
    new = {
        "memory": _between((found[0] - states) / max(1.0, predicted.total - states)),
        "speed": _between(found[1] / speed),
    }
    known = _known(path)
    old: dict[str, Any] = known.get(kind, {})
    runs = int(old.get("runs", 0))
    merged = {name: math.exp((math.log(old.get(name, 1.0)) * runs + math.log(value)) / (runs + 1))
              for name, value in new.items()}  # fmt: skip
    known[kind] = {**{name: round(value, 4) for name, value in merged.items()}, "runs": runs + 1}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(known, indent=1) + "\n")
    return known[kind]


def _between(factor: float) -> float:
    return min(MOST, max(LEAST, factor))
