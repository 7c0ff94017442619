"""Clipping by the norm over all gradients, and a step that is dropped whole where one of them is not finite."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from velocity.distributed.gradients import clip_or_drop


def parameter(*gradient: float) -> Tensor:
    """A parameter with this gradient."""
    made = torch.zeros(len(gradient), requires_grad=True)
    made.grad = torch.tensor(gradient)
    return made


def gradient(of: Tensor) -> list[float]:
    assert of.grad is not None
    return of.grad.tolist()


def test_the_norm_is_over_all_gradients_together():
    # sqrt(3² + 4² + 12²) = 13
    assert clip_or_drop([parameter(3.0, 4.0), parameter(12.0)], 0).grad_norm == pytest.approx(13)


def test_gradients_are_scaled_down_to_the_limit_by_one_factor():
    one, other = parameter(3.0), parameter(4.0)
    stats = clip_or_drop([one, other], 1.0)
    assert stats.grad_norm == pytest.approx(5)  # as it was
    assert not stats.skipped
    assert [*gradient(one), *gradient(other)] == pytest.approx([0.6, 0.8], rel=1e-5)


@pytest.mark.parametrize("clipping", [0.0, 5.5])
def test_gradients_below_the_limit_or_without_one_stay_as_they_are(clipping: float):
    one = parameter(3.0, 4.0)
    clip_or_drop([one], clipping)
    assert gradient(one) == [3.0, 4.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("clipping", [0.0, 1.0])
def test_one_value_that_is_not_finite_drops_every_gradient(bad: float, clipping: float):
    good, poisoned = parameter(1.0), parameter(2.0, bad)
    stats = clip_or_drop([good, poisoned], clipping)
    assert stats.skipped
    assert not math.isfinite(stats.grad_norm)
    assert good.grad is None
    assert poisoned.grad is None


def test_a_parameter_without_a_gradient_is_left_alone():
    frozen = torch.ones(2)
    assert clip_or_drop([frozen, parameter(2.0)], 1.0).grad_norm == pytest.approx(2)
    assert frozen.grad is None


def test_parameters_may_come_from_a_generator_as_a_module_gives_them():
    one = parameter(3.0, 4.0)
    assert clip_or_drop((each for each in [one]), 1.0).grad_norm == pytest.approx(5)
    assert gradient(one) == pytest.approx([0.6, 0.8], rel=1e-5)


def test_a_step_without_any_gradient_has_a_norm_of_nothing():
    stats = clip_or_drop([torch.ones(2)], 1.0)
    assert (stats.grad_norm, stats.skipped) == (0.0, False)
