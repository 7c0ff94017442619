"""TensorBoard event files below the run folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from velocity.checkpoints.report import Report


class TensorBoard:
    """Scalars of each step and evaluation."""

    def __init__(self, folder: Path, done: int) -> None:
        """What an earlier attempt told of steps after `done` is hidden: those steps are done again."""
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)

    def on_step(self, line: Mapping[str, float]) -> None:
        """Tell a step's numbers."""
        for name, value in line.items():
            if name != "step":
                self.writer.add_scalar(f"train/{name}", value, int(line["step"]))

    def on_eval(self, step: int, results: Mapping[str, Mapping[str, float]]) -> None:
        """Tell an evaluation's numbers."""
        for name, result in results.items():
            for key, value in result.items():
                self.writer.add_scalar(f"eval/{name}/{key}", value, step)

    def on_phase(self, what: str) -> None:
        """Keep nothing of it."""

    def on_save(self, report: Report) -> None:
        """Nothing."""

    def close(self) -> None:
        """Write what is left, and end."""
        self.writer.close()
