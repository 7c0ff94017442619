"""What objectives over answers share, on paper: tokens add up to answers, answers to pairs, pairs to metrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.objectives.toys import Toy, WithAnotherRank, answers, pairs
from velocity.batch import IGNORED, Batch
from velocity.data.collate import Piece, collate
from velocity.objectives.answers import (
    LiveReference,
    Pairs,
    SFTTerm,
    answer_logps,
    answers_of,
    cached_reference,
    pair_metrics,
    score_pairs,
)


def piece(labels: list[int], answer: int) -> Piece:
    return Piece(np.zeros(len(labels), dtype=np.int32), np.array(labels, dtype=np.int32), answer=answer)


def test_an_answer_has_the_sum_of_its_tokens_log_probabilities_wherever_it_lies():
    # answer 1 lies before answer 0, in one row with it; answer 2 has a token between its two that is not trained on
    batch = collate([[piece([2, 2], 1), piece([IGNORED, 0], 0)], [piece([1, IGNORED, 2], 2)]], answers={})
    assert answer_logps(Toy(-1.0, -2.0, -4.0), batch).tolist() == [-1.0, -8.0, -6.0]
    assert answers_of(batch).lengths_A.tolist() == [1, 2, 2]


def test_labels_that_belong_to_no_answer_are_left_out():
    assert answer_logps(Toy(-1.0, -2.0), collate([[piece([1, 1], -1), piece([0], 0)]], answers={}))[0] == -1.0


def test_the_first_half_of_the_answers_is_chosen_and_the_second_rejected():
    found = score_pairs(Toy(-1.0, -2.0, -4.0, -8.0), pairs(([0], [1, 1]), ([2, 2, 2], [3])))
    assert found.chosen_P.tolist() == [-1.0, -12.0] and found.rejected_P.tolist() == [-4.0, -8.0]
    assert found.chosen_length_P.tolist() == [1, 3] and found.rejected_length_P.tolist() == [2, 1]


def test_a_mean_is_a_token_of_the_answer():
    found = score_pairs(Toy(-1.0, -2.0), pairs(([0, 0, 1], [1, 1]))).means()
    assert [mean.tolist() for mean in found] == [pytest.approx([-4 / 3]), [-2.0]]


def test_a_cached_reference_is_what_the_batch_carries():
    assert cached_reference(pairs(([0], [1]), reference=[-0.5, -0.25])).tolist() == [-0.5, -0.25]


def test_a_live_reference_scores_each_batch_and_leaves_no_graph():
    reference_A = LiveReference(Toy(-1.0, -2.0))(pairs(([0, 0], [1])))
    assert reference_A.tolist() == [-2.0, -2.0] and not reference_A.requires_grad


METRICS = {
    "chosen_reward": 0.5 + 1 + 2,
    "rejected_reward": 0.25 + 1 + 3,
    "margin": 0.25 + 0 - 1,
    "accuracy": 1 + 0.5 + 0,  # higher, a tie, lower
    "preference_accuracy": 0 + 1 + 0.5,  # of the log-probabilities: -4 below -3, -1 above -2, -3 as -3
    "chosen_logps": -8,
    "rejected_logps": -8,
    "chosen_length": 9,
    "rejected_length": 6,
}


def test_metrics_are_sums_over_the_pairs_and_a_tie_is_half_a_pair():
    logps = (torch.tensor([-4.0, -1.0, -3.0], requires_grad=True), torch.tensor([-3.0, -2.0, -3.0]))
    found = pair_metrics(
        Pairs(*logps, torch.tensor([2, 3, 4]), torch.tensor([1, 2, 3])),
        torch.tensor([0.5, 1.0, 2.0], requires_grad=True),
        torch.tensor([0.25, 1.0, 3.0]),
    )
    assert {name: float(value) for name, value in found.items()} == METRICS
    assert not any(value.requires_grad for value in found.values())


def test_metrics_of_no_pairs_are_zero():
    none = torch.zeros(0)
    assert all(float(value) == 0 for value in pair_metrics(Pairs(none, none, none, none), none, none).values())


def sft(weight: float, policy: Toy, batches: list[Batch]) -> float:
    """The term of a global batch: summed over its micro-batches, divided by its pairs."""
    term = SFTTerm(weight)
    term.prepare(policy, batches)
    return sum(term(score_pairs(policy, batch)).item() for batch in batches) / sum(
        answers_of(batch).count // 2 for batch in batches
    )


ONE, TWO = ([0], [2, 2, 2]), ([1, 1, 1], [2])


def test_the_sft_term_is_the_mean_over_the_chosen_tokens_of_the_global_batch_however_it_is_split():
    # four chosen tokens, of -1, -3, -3, -3: mean 2.5. A mean of the two pairs' means would be (1 + 3) / 2 = 2.
    policy = Toy(-1.0, -3.0, -100.0)
    assert sft(0.5, policy, [pairs(ONE, TWO)]) == pytest.approx(0.5 * 2.5)
    assert sft(0.5, policy, [pairs(ONE), pairs(TWO)]) == pytest.approx(0.5 * 2.5)
    assert sft(0.5, policy, [pairs(ONE), pairs(TWO), answers([])]) == pytest.approx(0.5 * 2.5)


def test_the_sft_term_counts_the_pairs_and_tokens_of_the_other_ranks():
    # another rank has 1 pair with 6 chosen tokens: 2 pairs for 7 tokens, and ours adds 1 nat x 2 / 7
    policy = WithAnotherRank(-1.0, -3.0, -100.0, counted=[1, 6])
    assert sft(1.0, policy, [pairs(ONE)]) == pytest.approx(2 / 7)


def test_a_weight_of_zero_leaves_the_sft_term_out():
    assert sft(0.0, Toy(-1.0, -3.0, -100.0), [pairs(ONE, TWO)]) == 0
