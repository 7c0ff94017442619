"""Weights & Biases. The key comes from its own login or environment, never from a job file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb


class WandB:
    """One W&B run a run folder; a resumed run goes on in it."""

    def __init__(self, folder: Path, job: Mapping[str, Any]) -> None:
        self.run = wandb.init(
            project="velocity", name=folder.name, id=f"{folder.parent.name}-{folder.name}", resume="allow",
            dir=str(folder), config=dict(job),
        )  # fmt: skip

    def on_step(self, line: Mapping[str, float]) -> None:
        """Tell a step's numbers."""
        self.run.log({f"train/{name}": value for name, value in line.items()}, step=int(line["step"]))

    def on_eval(self, step: int, results: Mapping[str, Mapping[str, float]]) -> None:
        """Tell an evaluation's numbers."""
        self.run.log({f"eval/{name}/{key}": value for name, result in results.items() for key, value in result.items()})

    def close(self) -> None:
        """Write what is left, and end."""
        self.run.finish()
