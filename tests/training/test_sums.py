"""Sums of micro-batches: added up in fp64, over the ranks, and divided once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.test_trainer import ToyEngine
from velocity.objectives.objective import LossOutput
from velocity.training.sums import Sums


class TwoRanks(ToyEngine):
    """The other rank's loss and metric are 6 and 1; notes what was asked of all ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Tensor] = []

    def sum_over_ranks(self, value: Tensor) -> Tensor:
        self.asked.append(value)
        return value + torch.tensor([6.0, 1.0])[: len(value)]


def output(loss: Any, **metrics: Any) -> LossOutput:
    return LossOutput(torch.as_tensor(loss), {name: torch.as_tensor(value) for name, value in metrics.items()})


def summed(engine: ToyEngine, units: int, *outputs: LossOutput) -> dict[str, float]:
    sums = Sums()
    for one in outputs:
        sums.add(one)
    return sums.over_ranks(engine, units)


def test_what_is_reported_is_the_sum_over_all_divided_once_by_the_units():
    # (1 + 5) / 4 and (2 + 1) / 4; a mean of the two micro-batches' means, of 3 and 1 units, would be 8/3
    assert summed(ToyEngine(), 4, output(1.0, margin=2.0), output(5.0, margin=1.0)) == {"loss": 1.5, "margin": 0.75}


def test_ranks_are_asked_once_for_everything():
    engine = TwoRanks()
    assert summed(engine, 10, output(4.0, accuracy=2.0)) == {"loss": 1.0, "accuracy": pytest.approx(0.3)}
    assert len(engine.asked) == 1, "one message, however many metrics"


def test_the_loss_comes_first_and_metrics_keep_their_order():
    found = summed(ToyEngine(), 1, output(1.0, margin=2.0, accuracy=3.0))
    assert list(found) == ["loss", "margin", "accuracy"]


def test_a_small_loss_behind_a_large_one_is_not_rounded_away():
    # fp32 has no number between 2^24 and 2^24 + 2
    assert summed(ToyEngine(), 1, output(2.0**24), output(1.0))["loss"] == 2**24 + 1


def test_counts_and_16_bit_values_are_summed_like_any_other():
    half = torch.tensor(1.0, dtype=torch.bfloat16)
    # bf16 has 8 bits: 256 + 1 would be 256
    assert summed(ToyEngine(), 1, output(half * 256, wins=3), output(half, wins=4)) == {"loss": 257.0, "wins": 7.0}


def test_a_sum_holds_no_graph():
    sums = Sums()
    sums.add(output(torch.ones((), requires_grad=True) * 2))
    assert not sums.values["loss"].requires_grad
