"""MLflow. Where it logs to and with which credentials comes from its own environment, never from a job file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow

from velocity.checkpoints.report import Report


class MLflow:
    """One MLflow run an attempt, named after the run folder."""

    def __init__(self, folder: Path, job: Mapping[str, Any]) -> None:
        self.run = mlflow.start_run(run_name=folder.name)
        mlflow.log_dict(dict(job), "job.json")

    def on_step(self, line: Mapping[str, float]) -> None:
        """Tell a step's numbers."""
        mlflow.log_metrics(
            {f"train/{name}": value for name, value in line.items() if name != "step"}, int(line["step"])
        )

    def on_eval(self, step: int, results: Mapping[str, Mapping[str, float]]) -> None:
        """Tell an evaluation's numbers."""
        for name, result in results.items():
            mlflow.log_metrics({f"eval/{name}/{key}": value for key, value in result.items()}, step)

    def on_phase(self, what: str) -> None:
        """Keep nothing of it."""

    def on_save(self, report: Report) -> None:
        """Nothing."""

    def close(self) -> None:
        """Write what is left, and end."""
        mlflow.end_run()
