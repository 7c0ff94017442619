"""What a run teaches the planner: its plan, predicted anew without what was learned, against its log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from velocity.config.load import read_resolved
from velocity.config.resolved import is_resolved
from velocity.config.training import TrainingJob
from velocity.errors import UserError
from velocity.planner import calibration
from velocity.planner.candidates import Setting, evaluate
from velocity.planner.hardware import Hardware
from velocity.planner.machines import Cluster
from velocity.planner.size import model_size
from velocity.runs.folder import RunFolder


def learn_from(folder: Path) -> dict[str, Any]:
    """The factors of the run's kind of machine, which plans use from now on; UserError where it teaches nothing."""
    run = RunFolder(folder)
    if not is_resolved(run.job):
        raise UserError("no run of Velocity", str(folder), "name the output folder of a training job")
    job = read_resolved(run.job)
    if not isinstance(job, TrainingJob):
        raise UserError(f"a run of task {job.task} teaches nothing yet", str(folder), "name a training run")
    environment = json.loads(run.environment.read_text())
    hardware = environment["hardware"]
    cluster = Cluster(Hardware(**{**hardware, "gpus": tuple(tuple(gpu) for gpu in hardware["gpus"])}))
    size = model_size(Path(environment["model_folder"]))
    if size is None:
        raise UserError("the model of the run is gone", environment["model_folder"], "name another run")
    planned = evaluate(job, Setting(size, cluster, int(job.launch.processes), {}))
    found = calibration.measured(run)
    predicted = planned.memory.device
    file = calibration.place(job)
    factors = calibration.learn(file, cluster.kind, predicted, planned.speed.tokens_per_second, found)
    return {
        "machine": cluster.kind,
        "file": str(file),
        "predicted": {"bytes": round(predicted.total), "tokens_per_second": planned.speed.tokens_per_second},
        "measured": {"bytes": round(found[0]), "tokens_per_second": found[1]},
        "factors": dict(factors),
    }


def print_learned(learned: dict[str, Any]) -> None:
    """The same for a person, on standard output."""
    before, after = learned["predicted"], learned["measured"]
    gib = 2**30
    print(f"{learned['machine']}, from {learned['factors']['runs']} run(s): {learned['file']}")
    print(f"  memory    predicted {before['bytes'] / gib:,.2f} GiB, measured {after['bytes'] / gib:,.2f} GiB a rank")
    rates = before["tokens_per_second"], after["tokens_per_second"]
    print(f"  tokens/s  predicted {rates[0]:,.0f}, measured {rates[1]:,.0f}")
    factors = learned["factors"]
    print(f"  from now on memory beside the model's state x {factors['memory']:.2f}, speed x {factors['speed']:.2f}")
