"""Next-token prediction as a sum: of minus the log-probabilities, over the trained tokens, however they are split."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from velocity.batch import IGNORED, Batch
from velocity.objectives.causal_lm import CausalLM


def batch_of(*labels: list[int]) -> Batch:
    """Rows of one sequence each, with these labels; the inputs do not matter to an objective."""
    labels_BS = torch.tensor(labels)
    inputs_BS = torch.zeros_like(labels_BS)
    return Batch(inputs_BS, inputs_BS, labels_BS, tuple((len(row),) for row in labels))


def uniform(vocabulary: int):
    """A policy that takes every token of a vocabulary for equally likely."""

    def policy(batch: Batch) -> Tensor:
        return torch.where(batch.labels_BS == IGNORED, 0.0, -math.log(vocabulary))

    return policy


def test_a_unit_is_a_trained_token():
    assert CausalLM().units(batch_of([5, IGNORED, 0], [IGNORED, IGNORED, 7])) == 3
    assert CausalLM().units(batch_of([IGNORED])) == 0
    assert CausalLM().unit == "tokens"


def test_the_loss_of_a_uniform_policy_is_log_v_a_trained_token():
    batch = batch_of([1, 2, IGNORED], [3, IGNORED, IGNORED])
    total = CausalLM()(uniform(50), batch).total
    assert float(total) == pytest.approx(3 * math.log(50))
    assert total.shape == ()


def test_a_batch_without_a_trained_token_adds_nothing():
    assert float(CausalLM()(uniform(50), batch_of([IGNORED, IGNORED])).total) == 0


def test_the_sum_over_micro_batches_is_that_of_the_batch_with_rows_of_very_different_counts():
    rows = [[1, 2, 3, 4], [IGNORED, IGNORED, IGNORED, 9]]
    whole = CausalLM()(uniform(7), batch_of(*rows)).total
    parts = [CausalLM()(uniform(7), batch_of(row)) for row in rows]
    assert float(sum(part.total for part in parts)) == pytest.approx(float(whole))


def test_the_gradient_of_a_label_is_minus_one_and_of_any_other_token_nothing():
    batch = batch_of([1, IGNORED, 2])
    logps_BS = torch.full((1, 3), -0.5, requires_grad=True)
    CausalLM()(lambda given: torch.where(given.labels_BS == IGNORED, 0.0, logps_BS), batch).total.backward()
    assert logps_BS.grad is not None
    assert logps_BS.grad.tolist() == [[-1.0, 0.0, -1.0]]
