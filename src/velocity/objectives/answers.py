"""What objectives over answers share: an answer's log-probability, its reference, pairs, their metrics, an SFT term.

Shape letters: B rows, S tokens, A answers, P pairs. The chosen answers of a batch come first, then the rejected ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from velocity.batch import Answers, Batch
from velocity.objectives.objective import Policy, SharedPolicy

# reference_A of a batch: looked up where it was computed before, or computed now
Reference: TypeAlias = Callable[[Batch], Tensor]


def answers_of(batch: Batch) -> Answers:
    """The batch's answers; an objective over answers is only given batches that have them."""
    assert batch.answers is not None, "the layout of a preference job makes them"
    return batch.answers


def answer_logps(policy: Policy, batch: Batch) -> Tensor:
    """logps_A: each answer's log-probability, summed over its trained tokens, in nats."""
    logps_BS, answers = policy(batch), answers_of(batch)
    place_BS = answers.place_BS.to(logps_BS.device)
    labels = place_BS >= 0
    return logps_BS.new_zeros(answers.count).index_add(0, place_BS[labels], logps_BS[labels])


def cached_reference(batch: Batch) -> Tensor:
    """reference_A as it was computed before the training."""
    reference_A = answers_of(batch).reference_A
    assert reference_A is not None, "the corpus was given its reference"
    return reference_A


class LiveReference:
    """A frozen policy that is asked anew for each batch."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """reference_A, in nats."""
        return answer_logps(self.policy, batch)


@dataclass(frozen=True)
class Pairs:
    """The log-probabilities of a batch's pairs, and the trained tokens of each answer."""

    chosen_P: Tensor
    rejected_P: Tensor
    chosen_length_P: Tensor
    rejected_length_P: Tensor

    def means(self) -> tuple[Tensor, Tensor]:
        """Log-probabilities a token."""
        return self.chosen_P / self.chosen_length_P, self.rejected_P / self.rejected_length_P


def halves(values_A: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Those of the chosen and of the rejected answers, where `like` is."""
    values_A = values_A.to(like.device)
    return values_A[: len(values_A) // 2], values_A[len(values_A) // 2 :]


def score_pairs(policy: Policy, batch: Batch) -> Pairs:
    """The policy's log-probabilities of the batch's pairs."""
    logps_A = answer_logps(policy, batch)
    return Pairs(*halves(logps_A, logps_A), *halves(answers_of(batch).lengths_A, logps_A))


def pair_metrics(pairs: Pairs, chosen_reward_P: Tensor, rejected_reward_P: Tensor) -> dict[str, Tensor]:
    """Sums over the pairs of what is reported of them.

    `accuracy` is the share of pairs whose chosen answer has the higher reward (a tie is half a pair),
    `preference_accuracy` that whose chosen answer the policy itself finds more likely, whatever a reference says.
    """
    margin_P = (chosen_reward_P - rejected_reward_P).detach()
    return {
        "chosen_reward": chosen_reward_P.detach().sum(),
        "rejected_reward": rejected_reward_P.detach().sum(),
        "margin": margin_P.sum(),
        "accuracy": _wins(margin_P),
        "preference_accuracy": _wins((pairs.chosen_P - pairs.rejected_P).detach()),
        "chosen_logps": pairs.chosen_P.detach().sum(),
        "rejected_logps": pairs.rejected_P.detach().sum(),
        "chosen_length": pairs.chosen_length_P.sum(),
        "rejected_length": pairs.rejected_length_P.sum(),
    }


def _wins(margin_P: Tensor) -> Tensor:
    return (margin_P.sign() + 1).sum() / 2


class SFTTerm:
    """The SFT loss of the chosen answers: the mean of -log p over their tokens in the whole global batch.

    It is a mean over tokens while the objective is one over pairs, so its share of a micro-batch is scaled by the
    global batch's pairs a token; `weight` 0 leaves it out.
    """

    def __init__(self, weight: float) -> None:
        self.weight, self.scale = weight, 0.0

    def prepare(self, policy: SharedPolicy, batches: Iterable[Batch]) -> None:
        """Count the global batch's pairs and its chosen answers' tokens."""
        if not self.weight:
            return
        lengths = [answers_of(batch).lengths_A for batch in batches]
        tokens = sum(int(length_A[: len(length_A) // 2].sum()) for length_A in lengths)
        ours = torch.tensor([sum(map(len, lengths)) // 2, tokens])
        pairs, tokens = policy.sum_over_ranks(ours).tolist()
        self.scale = self.weight * pairs / max(tokens, 1)

    def __call__(self, pairs: Pairs) -> Tensor:
        """The weighted term, to be summed over micro-batches and divided by the pairs."""
        return -self.scale * pairs.chosen_P.sum()
