"""Held-out loss: a sum divided once, for each set, with dropout off and no gradient kept."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from tests.training.test_trainer import ToyEngine
from velocity.batch import IGNORED, Batch
from velocity.intervals import moments, ratio_interval_of
from velocity.objectives.causal_lm import CausalLM
from velocity.objectives.objective import LossOutput, Policy, SharedPolicy
from velocity.training.evaluate import Stopped, evaluate


class NotingEngine(ToyEngine):
    """A token of label n has log-probability -n; notes when dropout was switched, and whether gradients were kept."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[bool] = []

    def __call__(self, batch: Batch) -> Tensor:
        assert self.heard == [False], "scored with dropout on"
        assert not torch.is_grad_enabled()
        return torch.where(batch.labels_BS == IGNORED, 0.0, -batch.labels_BS.float())

    def train(self, mode: bool) -> None:
        self.heard.append(mode)


class TwoRanks(NotingEngine):
    """Another rank scored as many labels at twice the loss."""

    def sum_over_ranks(self, value: Tensor) -> Tensor:
        return value * 3 if value.is_floating_point() else value * 2  # a loss, or a count


def row(*labels: int) -> Batch:
    labels_BS = torch.tensor([labels])
    return Batch(torch.zeros_like(labels_BS), torch.zeros_like(labels_BS), labels_BS, ((len(labels),),))


def test_the_loss_of_a_set_is_over_its_labels_not_a_mean_of_batches():
    # (1 + 1 + 1 + 5) / 4 = 2; the mean of the batches' means would be (1 + 5) / 2 = 3
    found = evaluate(NotingEngine(), CausalLM(), {"unseen": [row(1, 1, 1), row(5, IGNORED)]})
    assert found == {"unseen": {"loss": 2.0, "perplexity": pytest.approx(math.exp(2)), "tokens": 4}}


class Rows(CausalLM):
    """Its units are rows, and their number is a metric; notes the sets it was prepared for."""

    unit = "pairs"

    def __init__(self) -> None:
        self.prepared: list[int] = []

    def units(self, batch: Batch) -> int:
        return len(batch.lengths_B)

    def prepare(self, policy: SharedPolicy, batches: Iterable[Batch]) -> None:
        self.prepared.append(len(list(batches)))

    def __call__(self, policy: Policy, batch: Batch) -> LossOutput:
        return LossOutput(super().__call__(policy, batch).total, {"margin": torch.tensor(0.5)})


def test_a_loss_that_is_not_one_a_token_has_no_perplexity_and_metrics_are_means_over_its_units():
    found = evaluate(NotingEngine(), Rows(), {"unseen": [row(1, 1), row(4, IGNORED)]})
    # (1 + 1 + 4) nats over two rows; two batches' half over two rows
    assert found == {"unseen": {"loss": 3.0, "margin": 0.5, "pairs": 2}}


def test_a_perplexity_has_an_interval_from_the_losses_of_its_sequences_wherever_they_are_packed():
    """2, 3 and 4 nats a token, as many tokens each: by Student's t 3 ± 4.303 · 1 / √3, a step before exp."""
    labels_BS = torch.tensor([[2, 2, 3, 3], [4, 4, IGNORED, IGNORED]])
    packed = Batch(torch.zeros_like(labels_BS), torch.zeros_like(labels_BS), labels_BS, ((2, 2), (2,)))
    half = 4.30265 / math.sqrt(3)
    for batches in ([packed], [row(4, 4), row(2, 2), row(3, 3)], [row(IGNORED, IGNORED), packed]):
        found = evaluate(NotingEngine(), CausalLM(), {"unseen": batches})["unseen"]
        assert list(found) == ["loss", "perplexity", "perplexity_low", "perplexity_high", "tokens"]
        assert found["perplexity_low"] == pytest.approx(math.exp(3 - half), rel=1e-4)
        assert found["perplexity_high"] == pytest.approx(math.exp(3 + half), rel=1e-4)


def test_an_interval_is_of_the_sequences_of_all_ranks():
    found = evaluate(TwoRanks(), CausalLM(), {"unseen": [row(2, 2), row(3, 3), row(4, 4)]})["unseen"]
    of_all = ratio_interval_of(3 * moments([4.0, 6.0, 8.0], [2.0] * 3), math.exp)  # the other rank has twice ours
    assert (found["perplexity_low"], found["perplexity_high"]) == pytest.approx((of_all.low, of_all.high))


def test_shares_have_the_interval_of_as_many_units_as_there_are():
    class HalfRight(Rows):
        def __call__(self, policy: Policy, batch: Batch) -> LossOutput:
            right = torch.tensor([0.5, len(batch.lengths_B)]).min()
            return LossOutput(super().__call__(policy, batch).total, {"accuracy": right, "margin": torch.tensor(9.0)})

    found = evaluate(NotingEngine(), HalfRight(), {"unseen": [row(1)] * 10})["unseen"]
    assert list(found) == ["loss", "accuracy", "accuracy_low", "accuracy_high", "margin", "pairs"]
    # the quantiles of Beta(5.5, 5.5)
    assert (found["accuracy_low"], found["accuracy_high"]) == pytest.approx((0.2235, 0.7765), abs=1e-4)


def test_a_model_that_diverged_is_measured_and_has_no_interval():
    class Diverged(NotingEngine):
        def __call__(self, batch: Batch) -> Tensor:
            return super().__call__(batch) * math.nan

    found = evaluate(Diverged(), CausalLM(), {"unseen": [row(1, 1), row(2, 2), row(3, 3)]})["unseen"]
    assert list(found) == ["loss", "perplexity", "tokens"] and math.isnan(found["perplexity"])


def test_an_objective_is_told_of_each_set_as_a_whole_before_it_is_scored():
    objective = Rows()
    evaluate(NotingEngine(), objective, {"unseen": [row(1), row(2)], "general": [row(3)]})
    assert objective.prepared == [2, 1]


def test_sets_are_scored_apart_and_keep_their_names():
    found = evaluate(NotingEngine(), CausalLM(), {"unseen": [row(1)], "general": [row(3)]})
    assert {name: result["loss"] for name, result in found.items()} == {"unseen": 1.0, "general": 3.0}


def test_sums_are_taken_over_ranks_before_the_division():
    # ours: 4 nats over 2 labels; the other's: 8 over 2. 12 / 4 = 3
    found = evaluate(TwoRanks(), CausalLM(), {"unseen": [row(1, 3)]})["unseen"]
    assert (found["loss"], found["tokens"]) == (3.0, 4)


def test_dropout_is_off_while_scoring_and_on_again_afterwards():
    engine = NotingEngine()
    evaluate(engine, CausalLM(), {"unseen": [row(1)]})
    assert engine.heard == [False, True]


def test_a_stop_is_heard_while_an_objective_looks_at_the_whole_set():
    objective = Rows()
    with pytest.raises(Stopped):
        evaluate(NotingEngine(), objective, {"unseen": [row(1), row(2)]}, lambda: True)
    assert objective.prepared == []


def test_a_stop_leaves_the_evaluation_before_its_next_batch():
    asked = iter([False, True])
    with pytest.raises(Stopped):
        evaluate(NotingEngine(), CausalLM(), {"unseen": [row(1), row(2), row(3)]}, lambda: next(asked))
    assert next(asked, "spent") == "spent"


def test_without_evaluation_sets_there_is_nothing_to_say():
    assert evaluate(NotingEngine(), CausalLM(), {}) == {}


def test_a_rank_with_nothing_to_score_does_not_divide_by_nothing():
    assert evaluate(NotingEngine(), CausalLM(), {"unseen": [row(IGNORED)]})["unseen"]["loss"] == 0


def test_a_loss_that_is_far_too_large_has_a_perplexity_that_is_still_a_number():
    found = evaluate(NotingEngine(), CausalLM(), {"unseen": [row(5000)]})["unseen"]
    assert found["loss"] == 5000
    assert math.isfinite(found["perplexity"])
