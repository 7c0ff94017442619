"""The contract of a training engine: what runs a model and holds its state, wherever that lives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from velocity.batch import Batch


@dataclass(frozen=True)
class StepStats:
    """What an optimizer step did. A skipped step had a non-finite gradient and changed nothing."""

    grad_norm: float
    skipped: bool


class TrainEngine(Protocol):
    """Scores batches, accumulates gradients, steps. Is itself a policy."""

    def __call__(self, batch: Batch) -> Tensor:
        """Return logps_BS: the log-probability of each label in fp32, 0 where there is none."""

    def train(self, mode: bool) -> None:
        """Dropout is on (True) or off (False)."""

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradient; the sum over ranks and micro-batches is what a step takes."""

    def step(self, learning_rate: float) -> StepStats:
        """Clip, update, forget the gradients; a non-finite gradient skips the update on every rank."""

    def sum_over_ranks(self, value: Tensor) -> Tensor:
        """Return the sum over data-parallel ranks."""

    def save(self, folder: Path) -> None:
        """All that `load` needs to go on bit for bit lies in `folder`. Every rank calls it."""

    def load(self, folder: Path) -> None:
        """The state is that of `save`, at the same number of ranks. Every rank calls it."""

    def weights(self) -> Mapping[str, Tensor]:
        """Return the whole weights of what is trained, on the processor of rank 0; empty elsewhere.

        That is the model, or its adapter. Every rank calls it.
        """
