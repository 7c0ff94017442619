"""The contract of an objective: it turns a policy and a micro-batch into a summed loss and its units."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from velocity.batch import Batch


class Policy(Protocol):
    """Anything that scores tokens: an engine in training, a frozen reference, a three-line toy in tests."""

    def __call__(self, batch: Batch) -> Tensor:
        """Return logps_BS: the log-probability of each label, 0 where there is none."""


class SharedPolicy(Policy, Protocol):
    """A policy that other ranks run, too, on their share of the same global batch."""

    def sum_over_ranks(self, value: Tensor) -> Tensor:
        """Return the sum over data-parallel ranks."""


@dataclass(frozen=True)
class LossOutput:
    """`total` is the loss summed over the objective's units, `metrics` are further sums to be divided by them."""

    total: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """A loss that can be split into micro-batches anywhere without changing its gradient."""

    unit: str  # what the loss sums over: tokens, pairs, answers

    def units(self, batch: Batch) -> int:
        """Count what the loss sums over."""

    def prepare(self, policy: SharedPolicy, batches: Iterable[Batch]) -> None:
        """Learn what the loss needs of a whole global batch (or evaluation set), of which these are our part.

        Every rank calls it before the first of the batches is scored.
        """

    def __call__(self, policy: Policy, batch: Batch) -> LossOutput:
        """Score the batch and sum the loss over its units."""
