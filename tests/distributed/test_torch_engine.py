"""The reference engine against sums by hand: accumulation, steps, dropped steps, and a load that goes on bit for bit.

Shape letters: B rows, S tokens.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.running import save_engine
from velocity.batch import Batch
from velocity.checkpoints.pieces import restore
from velocity.distributed.comm import Ranks
from velocity.distributed.torch_engine import TorchEngine


class Line(nn.Module):
    """A model of two numbers: logps_BS = slope x input + offset."""

    def __init__(self) -> None:
        super().__init__()
        self.slope, self.offset = nn.Parameter(torch.tensor([2.0])), nn.Parameter(torch.tensor([1.0]))

    def forward(self, input_BS: Tensor) -> Tensor:
        return self.slope * input_BS + self.offset


class Scorer(nn.Module):
    """Wraps the model as the real scorer does, under the name `model`."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Line()

    def forward(self, input_ids_BS: Tensor, positions_BS: Tensor, labels_BS: Tensor, *rows_B: Any) -> Tensor:
        return self.model(input_ids_BS.float())


def batch(*inputs: int) -> Batch:
    ids_BS = torch.tensor([inputs])
    return Batch(ids_BS, ids_BS, ids_BS, ((len(inputs),),))


def engine(kind: str = "sgd", clipping: float = 0.0) -> TorchEngine:
    scorer = Scorer()
    kinds: dict[str, Any] = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
    return TorchEngine(scorer, kinds[kind](scorer.parameters(), lr=123.0), clipping)


def values(made: TorchEngine) -> list[float]:
    return [float(value) for value in made.weights().values()]


def step(made: TorchEngine, *inputs: int, rate: float = 0.1, factor: float = 1.0) -> Any:
    made.backward(made(batch(*inputs)).sum() * factor)
    return made.step(rate)


def test_it_scores_as_its_scorer_does():
    assert engine()(batch(3, 5)).tolist() == [[7.0, 11.0]]


def test_a_step_goes_down_the_gradient_at_the_rate_it_is_given():
    made = engine()
    stats = step(made, 3, 5)
    # the sum's gradient: 3 + 5 = 8 for the slope, 1 + 1 = 2 for the offset; 2 - 0.1 x 8 = 1.2, 1 - 0.1 x 2 = 0.8
    assert values(made) == pytest.approx([1.2, 0.8])
    assert stats.grad_norm == pytest.approx(math.hypot(8, 2))
    assert not stats.skipped


def test_gradients_add_up_until_the_step_and_are_forgotten_by_it():
    made = engine()
    made.backward(made(batch(3)).sum())
    assert step(made, 5).grad_norm == pytest.approx(math.hypot(8, 2))
    assert step(made, 1).grad_norm == pytest.approx(math.hypot(1, 1))


def test_a_gradient_beyond_the_limit_is_clipped_and_told_as_it_was():
    made = engine(clipping=1.0)
    stats = step(made, 3, 0, 0, 0)  # (3, 4) of norm 5, clipped to (0.6, 0.8): 2 - 0.06, 1 - 0.08
    assert stats.grad_norm == pytest.approx(5)
    assert values(made) == pytest.approx([1.94, 0.92], rel=1e-5)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_gradient_that_is_not_finite_changes_nothing_and_the_next_step_is_as_if_it_had_not_been(kind: str):
    made, undisturbed = engine(kind), engine(kind)
    for each in (made, undisturbed):
        step(each, 3, 5)
    before = values(made)
    assert step(made, 1, factor=float("nan")).skipped
    assert values(made) == before
    assert not step(made, 2).skipped
    step(undisturbed, 2)
    assert values(made) == values(undisturbed)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_load_goes_on_bit_for_bit(tmp_path: Path, kind: str):
    straight, loaded = engine(kind), engine(kind)
    step(straight, 3, 5)
    save_engine(straight, tmp_path, Ranks())
    step(loaded, 4)  # somewhere else, with another state of the optimizer
    restore(loaded, tmp_path)
    assert values(loaded) == values(straight)
    for each in (straight, loaded):
        step(each, 7)
    assert values(loaded) == values(straight)


def test_weights_have_the_models_own_names_and_are_a_copy():
    made = engine()
    weights = made.weights()
    assert set(weights) == {"slope", "offset"}
    step(made, 3)
    assert float(weights["slope"]) == 2.0


def test_dropout_is_switched_with_the_scorer():
    made = engine()
    made.train(False)
    assert not made.scorer.training
    made.train(True)
    assert made.scorer.training


def test_alone_the_sum_over_ranks_is_the_value():
    assert engine().sum_over_ranks(torch.tensor([3.0, 4.0])).tolist() == [3.0, 4.0]
