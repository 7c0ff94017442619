"""The contract of a training engine: what runs a model and holds its state, wherever that lives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from torch import Tensor

from velocity.batch import Batch
from velocity.distributed.flats import Flat


@dataclass(frozen=True)
class StepStats:
    """What an optimizer step did. A skipped step had a non-finite gradient and changed nothing."""

    grad_norm: float
    skipped: bool


class Loss(Protocol):
    """A loss summed over a batch, and further sums beside it."""

    @property
    def total(self) -> Tensor:
        """The summed loss."""
        ...

    @property
    def metrics(self) -> Mapping[str, Tensor]:
        """Sums that are only reported."""
        ...


Objective: TypeAlias = Callable[[Any, Batch], Loss]  # of a policy and a batch


class TrainEngine(Protocol):
    """Scores batches, learns from them. Is itself a policy."""

    def __call__(self, batch: Batch) -> Tensor:
        """Return logps_BS: the log-probability of each label in fp32, 0 where there is none."""

    def train(self, mode: bool) -> None:
        """Dropout is on (True) or off (False)."""

    def learn(
        self, objective: Objective, batches: Sequence[Batch], units: int, learning_rate: float
    ) -> tuple[list[Loss], StepStats]:
        """One optimizer step on the summed loss of all ranks' batches over `units`; return each of our losses.

        The gradient is clipped; a non-finite one skips the update on every rank.
        """

    def sum_over_ranks(self, value: Tensor) -> Tensor:
        """Return the sum over the ranks, of those that share a model and its batches one."""

    def any_rank(self, flag: bool) -> bool:
        """True, on every rank, where it is on one."""

    def flats(self, *, start: bool = False) -> Iterator[Sequence[Flat]]:
        """Where weights and optimizer state lie on this rank: each time those that are in memory together.

        With `start` the optimizer has all its state, of zeros, and what is written into it stays. Every rank calls it.
        """

    def refresh(self) -> None:
        """What computes are the weights that were written into `flats`. Every rank calls it."""

    @property
    def scaler(self) -> dict[str, Any]:
        """What a loss scaler has learned, by attribute; it can be written. Empty where none is needed."""

    def weights(self) -> Mapping[str, Tensor]:
        """Return the whole weights of what is trained, on the processor of rank 0; empty elsewhere.

        That is the model, or its adapter. Every rank calls it.
        """


def set_rate(groups: Iterable[dict[str, Any]], learning_rate: float) -> None:
    """Each group of an optimizer has this learning rate, times its `scale` where it has one."""
    for group in groups:
        group["lr"] = learning_rate * group.get("scale", 1.0)


class OneByOne(Protocol):
    """An engine that scores a batch and takes its gradient before the next one."""

    def __call__(self, batch: Batch) -> Tensor:
        """Return logps_BS."""

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradient; the sum over ranks and micro-batches is what a step takes."""

    def step(self, learning_rate: float) -> StepStats:
        """Clip, update, forget the gradients."""


def learn_one_by_one(
    engine: OneByOne, objective: Objective, batches: Sequence[Batch], units: int, learning_rate: float
) -> tuple[list[Loss], StepStats]:
    """What `learn` returns."""
    losses = []
    for batch in batches:
        loss = objective(engine, batch)
        engine.backward(loss.total / units)
        losses.append(loss)
    return losses, engine.step(learning_rate)
