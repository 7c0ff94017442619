"""CPO on paper: -log sigmoid(beta x difference of the log-probabilities), beside the SFT loss of the chosen answer."""

from __future__ import annotations

import math

import pytest

from tests.objectives.toys import Toy, pairs
from velocity.batch import Batch
from velocity.config.objective import CPOConfig, DPOConfig
from velocity.objectives.answers import cached_reference
from velocity.objectives.cpo import CPO
from velocity.objectives.dpo import DPO
from velocity.objectives.objective import LossOutput


def run(config: CPOConfig, policy: Toy, batch: Batch) -> LossOutput:
    objective = CPO(config)
    objective.prepare(policy, [batch])
    return objective(policy, batch)


def test_alike_answers_cost_log_2_beside_the_sft_loss():
    # both answers have -4: log 2, and 2 nats a chosen token
    batch = pairs(([1, 1], [0, 0, 0, 0]))
    assert run(CPOConfig(), Toy(-1.0, -2.0), batch).total.item() == pytest.approx(math.log(2) + 2)


def test_the_difference_is_of_whole_answers_and_the_sft_term_is_a_token():
    # -2 against -5: 0.1 x 3; SFT of 1 nat a token, weighted
    policy, batch = Toy(-1.0, -2.5), pairs(([0, 0], [1, 1]))
    expected = math.log1p(math.exp(-0.3))
    assert run(CPOConfig(beta=0.1, sft_weight=0), policy, batch).total.item() == pytest.approx(expected)
    assert run(CPOConfig(beta=0.1, sft_weight=0.7), policy, batch).total.item() == pytest.approx(expected + 0.7)


def test_cpo_is_dpo_with_a_reference_that_finds_all_answers_equally_likely():
    policy = Toy(-1.0, -2.5)
    both = (([0, 0], [1]), ([1], [0, 0, 0]))
    dpo = DPO(DPOConfig(beta=0.3), cached_reference)(policy, pairs(*both, reference=[-9.0, -9.0, -9.0, -9.0]))
    assert run(CPOConfig(beta=0.3, sft_weight=0), policy, pairs(*both)).total.item() == pytest.approx(dpo.total.item())


def test_the_gradient_is_that_of_the_difference_and_of_the_sft_term():
    # alike answers: -beta/2 x 2 tokens - 1 (two tokens, half a nat each), and beta/2 on the rejected one
    policy = Toy(-1.0, -2.0)
    found = policy.gradient(run(CPOConfig(beta=0.4), policy, pairs(([0, 0], [1]))).total)
    assert found == pytest.approx([-0.4 - 1, 0.2])


def test_the_rewards_are_beta_times_the_log_probabilities():
    metrics = run(CPOConfig(beta=0.5), Toy(-1.0, -3.0), pairs(([0, 0], [1]))).metrics
    found = {name: float(metrics[name]) for name in ("chosen_reward", "rejected_reward", "margin", "accuracy")}
    assert found == {"chosen_reward": -1.0, "rejected_reward": -1.5, "margin": 0.5, "accuracy": 1.0}


def test_a_unit_is_a_pair():
    assert (CPO(CPOConfig()).unit, CPO(CPOConfig()).units(pairs(([0], [1]), ([0], [1])))) == ("pairs", 2)
