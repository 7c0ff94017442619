"""DPO and its variants on paper. Write m for the margin, beta x (the chosen answer's log-ratio to the reference less

the rejected one's), and l(m) = -log sigmoid(m) = log(1 + exp(-m)); then l(-m) = l(m) + m.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.objectives.toys import Toy, pairs
from velocity.batch import Batch
from velocity.config.objective import DPOConfig
from velocity.objectives.answers import LiveReference, cached_reference
from velocity.objectives.dpo import DPO

LOG_2 = math.log(2)
VARIANTS = [
    DPOConfig(),
    DPOConfig(label_smoothing=0.2),
    DPOConfig(loss="robust", label_smoothing=0.2),
    DPOConfig(loss="hinge"),
    DPOConfig(loss="ipo"),
]

# The policy gives the chosen answer -1 and the rejected one -3, the reference -2 and -2.5: log-ratios 1 and -0.5.
# With beta 0.2 the rewards are 0.2 and -0.1, m is 0.3 and l(m) = log(1 + exp(-0.3)) = 0.5543552.
POLICY, PAIR, LOSS = Toy(-1.0, -3.0), pairs(([0], [1]), reference=[-2.0, -2.5]), 0.5543552


def loss_of(config: DPOConfig, policy: Toy, batch: Batch) -> Tensor:
    objective = DPO(config, cached_reference)
    objective.prepare(policy, [batch])
    return objective(policy, batch).total


def loss_at(margin: float, **settings) -> float:
    """The loss of one pair of one token each, whose log-ratios differ by margin / beta."""
    config = DPOConfig(beta=0.5, **settings)
    return loss_of(config, Toy(margin / 0.5, 0.0), pairs(([0], [1]), reference=[0.0, 0.0])).item()


@pytest.mark.parametrize("config", VARIANTS[:3], ids=lambda config: f"{config.loss} {config.label_smoothing}")
def test_dpo_loss_is_log_2_when_the_policy_equals_the_reference(config: DPOConfig):
    # m = 0: l(0) = l(-0) = log 2, and the weights of the two add up to 1
    policy = Toy(-1.0, -2.0, -3.0)
    batch = pairs(([0], [1, 1]), ([2], [2, 0]), reference=[-1.0, -3.0, -4.0, -4.0])
    assert loss_of(config, policy, batch).item() == pytest.approx(2 * LOG_2)


def test_the_gradient_there_is_half_of_beta_up_for_each_chosen_token_and_down_for_each_rejected_one():
    # l'(0) = -1/2; m is beta x the chosen answer's, less beta x the rejected one's, so -beta/2 and beta/2 a token
    policy = Toy(-1.0, -2.0)
    batch = pairs(([0, 0, 0], [1]), reference=[-3.0, -2.0])
    assert policy.gradient(loss_of(DPOConfig(beta=0.4), policy, batch)) == pytest.approx([-0.2 * 3, 0.2])


def test_the_loss_is_log_1_plus_exp_of_minus_the_margin():
    assert loss_of(DPOConfig(beta=0.2), POLICY, PAIR).item() == pytest.approx(LOSS)


def test_the_loss_of_a_batch_is_the_sum_over_its_pairs_each_against_its_own_reference():
    # the second pair is the first one swapped, and so is its reference: l(m) + l(-m) = 2 l(m) + m
    both = pairs(([0], [1]), ([1], [0]), reference=[-2.0, -2.5, -2.5, -2.0])
    assert loss_of(DPOConfig(beta=0.2), POLICY, both).item() == pytest.approx(2 * LOSS + 0.3)


def test_the_rewards_are_beta_times_the_log_ratios():
    objective = DPO(DPOConfig(beta=0.2), cached_reference)
    metrics = {name: float(value) for name, value in objective(POLICY, PAIR).metrics.items()}
    assert metrics == pytest.approx({
        "chosen_reward": 0.2, "rejected_reward": -0.1, "margin": 0.3, "accuracy": 1, "preference_accuracy": 1,
        "chosen_logps": -1, "rejected_logps": -3, "chosen_length": 1, "rejected_length": 1,
    })  # fmt: skip


def test_the_accuracy_is_against_the_reference_and_the_preference_accuracy_is_not():
    # the policy prefers the chosen answer by 2 nats, as before by 5: its reward fell
    metrics = DPO(DPOConfig(), cached_reference)(POLICY, pairs(([0], [1]), reference=[-1.0, -6.0])).metrics
    assert (float(metrics["accuracy"]), float(metrics["preference_accuracy"])) == (0, 1)


def test_conservative_dpo_adds_the_smoothing_times_the_margin():
    # (1 - e) l(m) + e l(-m) = l(m) + e m
    found = loss_of(DPOConfig(beta=0.2, label_smoothing=0.1), POLICY, PAIR)
    assert found.item() == pytest.approx(LOSS + 0.1 * 0.3)


def test_conservative_dpo_asks_for_a_probability_of_one_less_the_smoothing_and_for_no_more():
    # d/dm (l(m) + e m) = e - sigmoid(-m) = 0 where sigmoid(m) = 1 - e: for e = 0.1 at m = log 9
    config, policy = DPOConfig(beta=1, label_smoothing=0.1), Toy(math.log(9), 0.0)
    batch = pairs(([0], [1]), reference=[0.0, 0.0])
    assert policy.gradient(loss_of(config, policy, batch)) == pytest.approx([0, 0], abs=1e-6)
    assert loss_at(math.log(9), label_smoothing=0.1) < min(
        loss_at(2.0, label_smoothing=0.1), loss_at(2.4, label_smoothing=0.1)
    )


def test_robust_dpo_takes_the_margin_away():
    # ((1 - e) l(m) - e (l(m) + m)) / (1 - 2e) = l(m) - e m / (1 - 2e), here 0.1 x 0.3 / 0.8
    found = loss_of(DPOConfig(beta=0.2, loss="robust", label_smoothing=0.1), POLICY, PAIR)
    assert found.item() == pytest.approx(LOSS - 0.0375)


@pytest.mark.parametrize("margin", [-2.0, 0.3, 5.0])
@pytest.mark.parametrize("flips", [0.05, 0.3])
def test_robust_dpo_is_the_clean_loss_on_average_over_pairs_that_are_swapped_with_that_probability(margin, flips):
    robust = {"loss": "robust", "label_smoothing": flips}
    mean = (1 - flips) * loss_at(margin, **robust) + flips * loss_at(-margin, **robust)
    assert mean == pytest.approx(loss_at(margin), rel=1e-5)
    conservative = (1 - flips) * loss_at(margin, label_smoothing=flips) + flips * loss_at(
        -margin, label_smoothing=flips
    )
    assert conservative != pytest.approx(loss_at(margin), rel=1e-2), "only the robust form is unbiased"


@pytest.mark.parametrize(("margin", "loss"), [(-1.0, 2.0), (0.0, 1.0), (0.25, 0.75), (1.0, 0.0), (3.0, 0.0)])
def test_the_hinge_falls_in_a_line_to_a_margin_of_one_and_is_zero_beyond(margin: float, loss: float):
    assert loss_at(margin, loss="hinge") == pytest.approx(loss)


def test_the_hinge_has_no_gradient_beyond_the_margin():
    policy = Toy(12.0, -3.0, 0.0)
    batch = pairs(([0], [1]), ([2], [2]), reference=[0.0, 0.0, 0.0, 0.0])
    # the first pair is beyond (0.1 x 15 = 1.5), the second before the margin (0): -beta + beta on its one token
    assert policy.gradient(loss_of(DPOConfig(loss="hinge"), policy, batch)) == [0, 0, 0]
    one = pairs(([0], [1]), ([2], [1]), reference=[0.0, -3.0, 0.0, -3.0])
    assert policy.gradient(loss_of(DPOConfig(loss="hinge"), policy, one)) == pytest.approx([0, 0.1, -0.1])


def test_ipo_is_zero_where_the_log_ratios_a_token_differ_by_one_half_over_beta():
    # beta 0.25: they are to differ by 2. The chosen answer's log-ratio is 1.5 on each of 2 tokens, the rejected -0.5.
    policy = Toy(-1.0, -2.0)
    batch = pairs(([0, 0], [1, 1, 1, 1]), reference=[-2 - 3.0, -8 + 2.0])
    loss = loss_of(DPOConfig(loss="ipo", beta=0.25), policy, batch)
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert policy.gradient(loss) == pytest.approx([0, 0], abs=1e-6)


def test_ipo_grows_with_the_square_of_the_distance_to_either_side():
    # policy and reference alike: (0 - 1 / (2 x 0.25))^2 = 4; as far beyond the 2 nats that are asked for: 4 again
    for chosen, loss in ((0.0, 4.0), (1.0, 1.0), (2.0, 0.0), (4.0, 4.0)):
        batch = pairs(([0], [1]), reference=[0.0, 0.0])
        assert loss_of(DPOConfig(loss="ipo", beta=0.25), Toy(chosen, 0.0), batch).item() == pytest.approx(loss)


def test_ipo_does_not_see_the_length_of_an_answer_and_the_sigmoid_does():
    policy = Toy(-1.0, -2.0)
    short = pairs(([0], [1]), reference=[-1.5, -1.0])
    long = pairs(([0] * 5, [1] * 3), reference=[-1.5 * 5, -1.0 * 3])
    one, other = (loss_of(DPOConfig(loss="ipo"), policy, batch).item() for batch in (short, long))
    assert one == pytest.approx(other)
    one, other = (loss_of(DPOConfig(), policy, batch).item() for batch in (short, long))
    assert one != pytest.approx(other, rel=1e-2)


@pytest.mark.parametrize("config", VARIANTS, ids=lambda config: f"{config.loss} {config.label_smoothing}")
def test_an_sft_term_adds_the_loss_of_the_chosen_tokens(config: DPOConfig):
    # pairs x weight x mean of -log p over the three chosen tokens: 2 x 0.5 x (1 + 2 + 2) / 3
    policy = Toy(-1.0, -2.0, -7.0)
    batch = pairs(([0], [2, 2]), ([1, 1], [2]), reference=[-1.0, -4.5, -14.0, -9.0])
    plain, both = (loss_of(config.model_copy(update={"sft_weight": w}), policy, batch) for w in (0.0, 0.5))
    assert (both - plain).item() == pytest.approx(5 / 3)
    # and lifts each chosen token by 2 x 0.5 / 3, a token once for every time it stands there
    one, other = policy.gradient(plain), policy.gradient(both)
    assert [b - a for a, b in zip(one, other, strict=True)] == pytest.approx([-1 / 3, -2 / 3, 0], abs=1e-6)


def test_a_unit_is_a_pair():
    objective = DPO(DPOConfig(), cached_reference)
    assert (objective.unit, objective.units(pairs(([0], [1]), ([0], [0, 1, 1])))) == ("pairs", 2)


def test_a_live_reference_is_asked_before_the_policy_whose_activations_are_kept():
    asked: list[str] = []

    def named(name: str):
        return lambda batch: asked.append(name) or Toy(-1.0, -2.0)(batch)  # type: ignore[func-returns-value]

    DPO(DPOConfig(), LiveReference(named("reference")))(named("policy"), pairs(([0], [1])))
    assert asked == ["reference", "policy"]


def test_the_loss_of_an_extreme_margin_is_finite_and_so_is_its_gradient():
    for margin in (-1e4, 1e4):
        policy, batch = Toy(margin, 0.0), pairs(([0], [1]), reference=[0.0, 0.0])
        for config in VARIANTS:
            loss = loss_of(config, policy, batch)
            assert torch.isfinite(loss) and all(map(math.isfinite, policy.gradient(loss)))
