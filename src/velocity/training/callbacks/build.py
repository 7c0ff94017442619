"""The callbacks of a job: the only place that matches on a tracker's name."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from velocity.errors import UserError
from velocity.secrets import scrub
from velocity.training.callbacks.callback import Callback
from velocity.training.callbacks.guard import Guarded
from velocity.training.callbacks.jsonl import JsonlMetrics
from velocity.training.callbacks.prediction import PredictionCheck
from velocity.training.callbacks.progress import ProgressReport


def build_callbacks(folder: Path, job: Mapping[str, Any], total: int, done: int) -> list[Callback]:
    """metrics.jsonl, the progress report and the check of the plan, and what `tracking` names."""
    always: list[Callback] = [
        JsonlMetrics(folder / "metrics.jsonl"),
        ProgressReport(folder, total, done),
        PredictionCheck(folder / "plan.json"),
    ]
    return always + [Guarded(name, _tracker(name, folder, job, done)) for name in job["tracking"]]


def check_installed(tracking: Sequence[str]) -> None:
    """Nothing, or UserError for a tracker whose package is absent; it imports none of them."""
    for name in tracking:
        if importlib.util.find_spec(name) is None:
            what = f"tracking: {name} is not installed"
            raise UserError(what, "tracking", "pip install 'ProfoundVelocity[tracking]'")


def _tracker(name: str, folder: Path, job: Mapping[str, Any], done: int) -> Callback:
    told = json.loads(scrub(json.dumps(job)))  # it leaves the machine
    match name:
        case "tensorboard":
            from velocity.training.callbacks.tensorboard import TensorBoard

            return TensorBoard(folder, done)
        case "wandb":
            from velocity.training.callbacks.wandb import WandB

            return WandB(folder, told)
        case _:
            from velocity.training.callbacks.mlflow import MLflow

            return MLflow(folder, told)
