"""The loss and the metrics of several micro-batches, added up here and over the ranks. It knows no objective."""

from __future__ import annotations

import torch
from torch import Tensor

from velocity.distributed.engine import Loss, TrainEngine


class Sums:
    """The loss and the metrics of a step, summed in fp64."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}

    def add(self, loss: Loss) -> None:
        """Add those of a micro-batch."""
        for name, value in {"loss": loss.total, **loss.metrics}.items():
            self.values[name] = self.values.get(name, 0) + value.detach().double().cpu()

    def over_ranks(self, engine: TrainEngine, units: int) -> dict[str, float]:
        """Return each sum over all ranks, divided once by the units. Every rank has the same names."""
        totals: list[float] = engine.sum_over_ranks(torch.stack(list(self.values.values()))).tolist()
        return {name: total / units for name, total in zip(self.values, totals, strict=True)}
