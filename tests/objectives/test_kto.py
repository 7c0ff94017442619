"""KTO on paper. Write r for an answer's log-ratio to the reference and z for the reference point, the mean of it over

mismatched answers, not below 0: a desirable answer costs its weight x (1 - sigmoid(beta (r - z))), another one its
weight x (1 - sigmoid(beta (z - r))).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from tests.objectives.toys import Toy, WithAnotherRank, answers
from velocity.batch import Batch
from velocity.config.objective import KTOConfig
from velocity.objectives.answers import cached_reference
from velocity.objectives.kto import KTO
from velocity.objectives.objective import LossOutput


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def batch_of(tokens: Sequence[int], desirable: Sequence[bool], others: Sequence[int]) -> Batch:
    """Answers of one token each, and one of `others` in place of each; the reference gives everything -1."""
    reference = {"reference_A": -torch.ones(len(tokens))}
    return answers(
        [[token] for token in tokens],
        desirable_A=torch.tensor(desirable),
        mismatched=answers([[token] for token in others], **reference),
        **reference,
    )


def run(config: KTOConfig, policy: Toy, batch: Batch) -> LossOutput:
    objective = KTO(config, cached_reference)
    objective.prepare(policy, [batch])
    return objective(policy, batch)


def reference_point(policy: Toy, *batches: Batch) -> float:
    objective = KTO(KTOConfig(), cached_reference)
    objective.prepare(policy, list(batches))
    return objective.kl


WEIGHTED = KTOConfig(beta=0.5, desirable_weight=1.25, undesirable_weight=0.75)


def test_an_answer_at_the_reference_point_costs_half_of_its_weight():
    # policy and reference alike: r = z = 0, sigmoid(0) = 1/2
    batch = batch_of([0, 0, 0], [True, False, False], [0, 0, 0])
    assert run(WEIGHTED, Toy(-1.0), batch).total.item() == pytest.approx((1.25 + 2 * 0.75) / 2)
    # and so where both are 2: the answers' log-ratio is 2, and so is that of the mismatched ones
    assert run(WEIGHTED, Toy(1.0), batch).total.item() == pytest.approx((1.25 + 2 * 0.75) / 2)


def test_the_reference_point_is_the_mean_log_ratio_of_the_mismatched_answers():
    # log-ratios of the others: 3 and 0, mean 1.5; those of the answers themselves (-4) do not matter
    policy = Toy(-5.0, 2.0, -1.0)
    assert reference_point(policy, batch_of([0, 0], [True, False], [1, 2])) == 1.5


def test_the_reference_point_is_not_below_zero():
    policy = Toy(-5.0, 2.0, -1.0)
    assert reference_point(policy, batch_of([1, 1], [True, False], [0, 0])) == 0
    # it is the mean that is cut off, not each answer's log-ratio: (3 - 4) / 2 < 0
    assert reference_point(policy, batch_of([1, 1], [True, False], [1, 0])) == 0


def test_the_reference_point_is_that_of_the_whole_global_batch_however_it_is_split():
    # log-ratios 3, 0 and -1: mean 2/3. Micro-batch by micro-batch, cut off each, it would be 3, 0, 0.
    policy = Toy(-2.0, 2.0, -1.0)
    parts = [batch_of([0], [True], [1]), batch_of([0], [False], [2]), batch_of([0], [False], [0])]
    assert reference_point(policy, *parts) == pytest.approx(2 / 3)
    assert reference_point(policy, batch_of([0, 0, 0], [True, False, False], [1, 2, 0])) == pytest.approx(2 / 3)


def test_the_reference_point_counts_the_other_ranks():
    # ours: log-ratio 3 of 1 answer; another rank's: 5 of 3 answers, 2 of them desirable. (3 + 5) / 4
    policy = WithAnotherRank(2.0, counted=[5, 3, 2])
    assert reference_point(policy, batch_of([0], [True], [0])) == pytest.approx(2)


def test_the_loss_is_one_less_the_sigmoid_of_the_distance_to_the_reference_point():
    # r: 3 (desirable), -1 (not); z = (3 + 0) / 2 = 1.5
    policy = Toy(2.0, -2.0, -1.0)
    found = run(WEIGHTED, policy, batch_of([0, 1], [True, False], [0, 2]))
    expected = 1.25 * (1 - sigmoid(0.5 * (3 - 1.5))) + 0.75 * (1 - sigmoid(0.5 * (1.5 + 1)))
    assert found.total.item() == pytest.approx(expected)


def test_the_gradient_lifts_desirable_answers_lowers_others_and_leaves_the_mismatched_alone():
    # at r = z: sigmoid'(0) = 1/4, so -weight x beta / 4 and weight x beta / 4; token 1 stands in no answer
    policy = Toy(-1.0, -1.0, -1.0)
    found = run(WEIGHTED, policy, batch_of([0, 2], [True, False], [1, 1]))
    assert policy.gradient(found.total) == pytest.approx([-1.25 * 0.5 / 4, 0, 0.75 * 0.5 / 4])


def test_the_mismatched_answers_are_scored_without_a_graph():
    objective, policy = KTO(KTOConfig(), cached_reference), Toy(-1.0)
    graphs: list[bool] = []

    class Watched(Toy):
        def __call__(self, batch: Batch):
            graphs.append(torch.is_grad_enabled())
            return policy(batch)

    batch = batch_of([0], [True], [0])
    objective.prepare(Watched(-1.0), [batch])
    objective(Watched(-1.0), batch)
    assert graphs == [False, True]


def test_metrics_divided_by_all_answers_are_the_means_of_each_kind():
    # desirable: rewards 0.5 x 3 and 0.5 x 0, mean 0.75; the other one: 0.5 x -1. z = (3 + 0 + 0) / 3 = 1.
    policy = Toy(2.0, -2.0, -1.0)
    found = run(WEIGHTED, policy, batch_of([0, 2, 1], [True, True, False], [0, 2, 2])).metrics
    assert {name: float(value) / 3 for name, value in found.items()} == pytest.approx({
        "chosen_reward": 0.75, "rejected_reward": -0.5, "margin": 1.25,
        "chosen_logps": 0.5, "rejected_logps": -2, "chosen_length": 1, "rejected_length": 1,
        "accuracy": 2 / 3,  # the second one is desirable, and its reward 0 is below 0.5 x z
        "kl": 1,
    })  # fmt: skip


def test_metrics_of_several_micro_batches_add_up_to_the_means_of_each_kind():
    # one desirable answer in three: reward 0.1 x 3; two others: 0.1 x -1 and 0.1 x 0
    objective, policy = KTO(KTOConfig(), cached_reference), Toy(2.0, -2.0, -1.0)
    parts = [batch_of([0], [True], [2]), batch_of([1, 2], [False, False], [2, 2])]
    objective.prepare(policy, parts)
    outputs = [objective(policy, part).metrics for part in parts]
    means = {name: sum(float(output[name]) for output in outputs) / 3 for name in outputs[0]}
    assert means["chosen_reward"] == pytest.approx(0.3) and means["rejected_reward"] == pytest.approx(-0.05)
    # z is 0, and so is the last one's reward: half an answer
    assert means["margin"] == pytest.approx(0.35) and means["accuracy"] == pytest.approx(2.5 / 3)


@pytest.mark.parametrize("desirable", [True, False])
def test_a_global_batch_of_one_kind_has_finite_metrics(desirable: bool):
    found = run(KTOConfig(), Toy(2.0), batch_of([0, 0], [desirable, desirable], [0, 0]))
    assert all(math.isfinite(float(value)) for value in found.metrics.values())


def test_a_unit_is_an_answer():
    objective = KTO(KTOConfig(), cached_reference)
    assert (objective.unit, objective.units(batch_of([0, 0, 0], [True, False, True], [0, 0, 0]))) == ("answers", 3)
