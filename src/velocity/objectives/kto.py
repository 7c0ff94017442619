"""Kahneman-Tversky optimisation, of single answers: arXiv 2402.01306, L_KTO. Shape letters: A answers.

The reference point is exact over the global batch: before its gradient is computed, every prompt is scored with
another prompt's answer (half the data set away), and the mean log-ratio to the reference over all ranks and
micro-batches, not below 0, is the estimate of the KL divergence. So the loss depends on the global batch and on the
data set's order, and on nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from velocity.batch import Batch
from velocity.config.objective import KTOConfig
from velocity.objectives.answers import Reference, answer_logps, answers_of
from velocity.objectives.objective import LossOutput, Policy, SharedPolicy


class KTO:
    """Moves desirable answers over the reference point, and others under it; an answer a unit."""

    unit = "answers"

    def __init__(self, config: KTOConfig, reference: Reference) -> None:
        self.config, self.reference = config, reference
        self.kl = 0.0
        self.shares = (1.0, 1.0)  # all answers of the global batch to its desirable, its undesirable ones

    def units(self, batch: Batch) -> int:
        """Answers."""
        return answers_of(batch).count

    @torch.no_grad()
    def prepare(self, policy: SharedPolicy, batches: Iterable[Batch]) -> None:
        """Estimate the KL divergence over the global batch."""
        sums = torch.zeros(3, dtype=torch.float64)
        for batch in batches:
            answers = answers_of(batch)
            assert answers.mismatched is not None and answers.desirable_A is not None, "KTO's layout makes them"
            reference_A = self.reference(answers.mismatched)
            logps_A = answer_logps(policy, answers.mismatched)
            ratio = (logps_A - reference_A.to(logps_A.device)).sum()
            sums += torch.tensor([float(ratio), answers.count, int(answers.desirable_A.sum())], dtype=torch.float64)
        ratio, count, desirable = policy.sum_over_ranks(sums).tolist()
        self.kl = max(0.0, ratio / max(count, 1))
        self.shares = (count / max(desirable, 1), count / max(count - desirable, 1))

    def __call__(self, policy: Policy, batch: Batch) -> LossOutput:
        """The loss summed over the answers."""
        reference_A = self.reference(batch)
        logps_A, answers = answer_logps(policy, batch), answers_of(batch)
        assert answers.desirable_A is not None, "KTO's layout makes it"
        desirable_A = answers.desirable_A.to(logps_A.device)
        reward_A = self.config.beta * (logps_A - reference_A.to(logps_A.device))
        total = self._loss(reward_A, desirable_A).sum()
        return LossOutput(total, self._metrics(reward_A.detach(), desirable_A, logps_A.detach(), answers.lengths_A))

    def _loss(self, reward_A: Tensor, desirable_A: Tensor) -> Tensor:
        config, above_A = self.config, reward_A - self.config.beta * self.kl
        return torch.where(
            desirable_A,
            config.desirable_weight * (1 - torch.sigmoid(above_A)),
            config.undesirable_weight * (1 - torch.sigmoid(-above_A)),
        )

    def _metrics(self, reward_A: Tensor, desirable_A: Tensor, logps_A: Tensor, lengths_A: Tensor) -> dict[str, Tensor]:
        """Sums; those of one kind are scaled so that divided by all answers they are that kind's means."""
        kinds = {"chosen": (desirable_A, self.shares[0]), "rejected": (~desirable_A, self.shares[1])}
        sums = {
            f"{kind}_{name}": (values_A * mask_A).sum() * share
            for name, values_A in (("reward", reward_A), ("logps", logps_A), ("length", lengths_A.to(logps_A.device)))
            for kind, (mask_A, share) in kinds.items()
        }
        above_A = (reward_A - self.config.beta * self.kl).sign()
        right_A = (torch.where(desirable_A, above_A, -above_A) + 1) / 2  # a tie is half an answer
        margin = sums["chosen_reward"] - sums["rejected_reward"]
        return {**sums, "margin": margin, "accuracy": right_A.sum(), "kl": torch.tensor(self.kl * len(reward_A))}
