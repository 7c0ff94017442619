"""Weights & Biases. The key comes from its own login or environment, never from a job file."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb

from velocity.checkpoints.report import Report
from velocity.files import write_atomically


class WandB:
    """One W&B run a run folder; a resumed run goes on in it."""

    def __init__(self, folder: Path, job: Mapping[str, Any]) -> None:
        note = folder / "wandb-id.txt"  # of this folder alone: other clones have runs of the same name
        if not note.is_file():
            write_atomically(note, uuid.uuid4().hex)
        self.run = wandb.init(
            project="velocity", name=folder.name, id=note.read_text(), resume="allow", dir=str(folder), config=dict(job)
        )

    def on_step(self, line: Mapping[str, float]) -> None:
        """Tell a step's numbers."""
        self.run.log({f"train/{name}": value for name, value in line.items()}, step=int(line["step"]))

    def on_eval(self, step: int, results: Mapping[str, Mapping[str, float]]) -> None:
        """Tell an evaluation's numbers."""
        self.run.log({f"eval/{name}/{key}": value for name, result in results.items() for key, value in result.items()})

    def on_phase(self, what: str) -> None:
        """Keep nothing of it."""

    def on_save(self, report: Report) -> None:
        """Nothing."""

    def close(self) -> None:
        """Write what is left, and end."""
        self.run.finish()
