"""SimPO on paper: -log sigmoid(beta x (difference of the mean log-probabilities) - gamma)."""

from __future__ import annotations

import math

import pytest

from tests.objectives.toys import Toy, pairs
from velocity.config.objective import SimPOConfig
from velocity.objectives.simpo import SimPO


def test_alike_answers_cost_what_the_margin_asks_for():
    # -log sigmoid(0 - gamma) = log(1 + e^gamma): for gamma 1, 1.3132617; for gamma 0, log 2
    batch = pairs(([0, 0], [0]))
    assert SimPO(SimPOConfig(gamma=1))(Toy(-1.0), batch).total.item() == pytest.approx(1.3132617)
    assert SimPO(SimPOConfig(gamma=0))(Toy(-1.0), batch).total.item() == pytest.approx(math.log(2))


def test_the_loss_is_log_2_where_the_scaled_difference_is_the_margin():
    # 2.5 x (-1 - (-1.4)) = 1 = gamma
    batch = pairs(([0], [1, 1, 1]))
    assert SimPO(SimPOConfig(beta=2.5, gamma=1))(Toy(-1.0, -1.4), batch).total.item() == pytest.approx(math.log(2))


def test_an_answer_costs_the_same_a_token_however_long_it_is():
    policy, objective = Toy(-1.0, -2.0), SimPO(SimPOConfig())
    short, long = pairs(([0], [1])), pairs(([0] * 7, [1] * 3))
    assert objective(policy, short).total.item() == pytest.approx(objective(policy, long).total.item())
    assert objective(policy, pairs(([0], [1]), ([0] * 7, [1] * 3))).total.item() == pytest.approx(
        2 * math.log1p(math.exp(-(2 * 1 - 1)))  # the default: beta 2, gamma 1
    )


def test_the_gradient_of_an_answer_is_spread_over_its_tokens():
    # at the margin -1/2 x beta for the mean of the chosen answer: -1/2 x 2 / 2 a token of two, and back on the other
    policy = Toy(-1.0, -1.5, -1.5)
    loss = SimPO(SimPOConfig(beta=2, gamma=1))(policy, pairs(([0, 0], [1, 2, 2, 2]))).total
    assert policy.gradient(loss) == pytest.approx([-0.5 * 2, 0.25, 0.25 * 3])


def test_the_rewards_are_beta_times_the_log_probability_a_token_without_the_margin():
    metrics = SimPO(SimPOConfig(beta=2, gamma=1))(Toy(-1.0, -3.0), pairs(([0, 0], [1]))).metrics
    found = {name: float(metrics[name]) for name in ("chosen_reward", "rejected_reward", "margin", "chosen_logps")}
    assert found == {"chosen_reward": -2.0, "rejected_reward": -6.0, "margin": 4.0, "chosen_logps": -2.0}


def test_a_unit_is_a_pair():
    assert (SimPO(SimPOConfig()).unit, SimPO(SimPOConfig()).units(pairs(([0], [1]), ([0], [1])))) == ("pairs", 2)
