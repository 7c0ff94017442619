"""ORPO on paper: the odds of an answer are p / (1 - p), p the geometric mean of its tokens' probabilities."""

from __future__ import annotations

import math

import pytest
import torch

from tests.objectives.toys import Toy, pairs
from velocity.batch import Batch
from velocity.config.objective import ORPOConfig
from velocity.objectives.objective import LossOutput
from velocity.objectives.orpo import ORPO, log_odds

HALF, LOG_2, LOG_3 = math.log(1 / 2), math.log(2), math.log(3)


def run(config: ORPOConfig, policy: Toy, batch: Batch) -> LossOutput:
    objective = ORPO(config)
    objective.prepare(policy, [batch])
    return objective(policy, batch)


def test_even_odds_of_both_answers_cost_log_2_beside_the_sft_loss():
    # p = 1/2 a token: odds 1 and 1, their ratio 1, its logarithm 0; beta log 2, and log 2 for each chosen token
    batch = pairs(([0, 0, 0], [0]))
    assert run(ORPOConfig(beta=0.3), Toy(HALF), batch).total.item() == pytest.approx(0.3 * LOG_2 + LOG_2)


def test_the_odds_ratio_of_three_quarters_to_one_half_is_three():
    # odds 3 and 1, whatever the lengths; -log sigmoid(log 3) = log(1 + 1/3); SFT: -log(3/4)
    batch = pairs(([0, 0], [1, 1, 1]))
    expected = 0.1 * math.log(4 / 3) + math.log(4 / 3)
    assert run(ORPOConfig(), Toy(math.log(3 / 4), HALF), batch).total.item() == pytest.approx(expected)


def test_the_loss_of_a_batch_is_the_sum_over_its_pairs():
    # odds 3 to 1, then 1 to 3: log(4/3) + log 4. Chosen tokens: one of 3/4, two of 1/2, and 2 pairs for these 3.
    policy, batch = Toy(math.log(3 / 4), HALF), pairs(([0], [1]), ([1, 1], [0]))
    expected = 0.1 * (math.log(4 / 3) + math.log(4)) + 2 / 3 * (math.log(4 / 3) + 2 * LOG_2)
    assert run(ORPOConfig(), policy, batch).total.item() == pytest.approx(expected)


def test_the_rewards_are_beta_times_the_log_probability_a_token():
    metrics = run(ORPOConfig(beta=0.5), Toy(-1.0, -3.0), pairs(([0, 0], [1]))).metrics
    found = {name: float(metrics[name]) for name in ("chosen_reward", "rejected_reward", "margin", "chosen_logps")}
    assert found == {"chosen_reward": -0.5, "rejected_reward": -1.5, "margin": 1.0, "chosen_logps": -2.0}


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.49, 0.4999, 0.5, 0.5001, 0.75, 0.999])
def test_log_odds_are_those_of_the_probability_and_their_slope_is_one_over_one_less_it(p: float):
    # d/d(log p) (log p - log(1 - p)) = 1 + p / (1 - p) = 1 / (1 - p)
    logp = torch.tensor(math.log(p), requires_grad=True)
    found = log_odds(logp)
    found.backward()
    assert logp.grad is not None
    assert found.item() == pytest.approx(math.log(p / (1 - p)), rel=1e-5, abs=1e-6)
    assert logp.grad.item() == pytest.approx(1 / (1 - p), rel=1e-4)


@pytest.mark.parametrize(("logp", "odds", "slope"), [
    (-1e-4, math.log(1e4), 1e4),  # 1 - p = 1e-4 to 4 digits, which 1 - exp(-1e-4) in fp32 is not
    (-1e-6, math.log(1e6), 1e6),
    (-100.0, -100.0, 1.0),  # exp(-100) is nearly 0
    (-1e4, -1e4, 1.0),  # and exp(-10000) is 0
])  # fmt: skip
def test_log_odds_stay_exact_near_certainty_and_near_impossibility(logp: float, odds: float, slope: float):
    logps = torch.tensor([logp], requires_grad=True)
    found = log_odds(logps)
    found.sum().backward()
    assert logps.grad is not None
    assert found.item() == pytest.approx(odds, rel=1e-4)
    assert logps.grad.item() == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("logp", [-1e-7, -1e-30, 0.0])
def test_log_odds_and_their_slope_are_finite_where_the_probability_is_one_in_fp32(logp: float):
    logps = torch.tensor([logp], requires_grad=True)
    found = log_odds(logps)
    found.sum().backward()
    assert logps.grad is not None
    assert torch.exp(logps).item() > 1 - 1e-6 and 15 < found.item() < math.inf
    assert math.isfinite(logps.grad.item())


def test_the_loss_of_answers_near_certainty_and_impossibility_has_a_finite_gradient():
    for policy in (Toy(-1e-7, -1e4), Toy(-1e4, -1e-7)):
        loss = run(ORPOConfig(), policy, pairs(([0], [1]))).total
        assert torch.isfinite(loss) and all(map(math.isfinite, policy.gradient(loss)))


def test_the_gradient_is_that_of_the_odds_ratio_and_of_the_sft_loss():
    # at p = 1/2 each: d(-beta log sigmoid(x))/dx = -beta/2 at 0, dx/dlogp = 2 and -2; SFT: -1 on the chosen token
    policy = Toy(HALF, HALF)
    found = policy.gradient(run(ORPOConfig(beta=0.3), policy, pairs(([0], [1]))).total)
    assert found == pytest.approx([-0.3 - 1, 0.3])


def test_a_unit_is_a_pair():
    assert (ORPO(ORPOConfig()).unit, ORPO(ORPOConfig()).units(pairs(([0], [1]), ([0], [1])))) == ("pairs", 2)
