"""Simple preference optimisation, without a reference: arXiv 2405.14734, L_SimPO. Shape letters: P pairs."""

from __future__ import annotations

from collections.abc import Iterable

import torch.nn.functional as F

from velocity.batch import Batch
from velocity.config.objective import SimPOConfig
from velocity.objectives.answers import answers_of, pair_metrics, score_pairs
from velocity.objectives.objective import LossOutput, Policy, SharedPolicy


class SimPO:
    """Asks for a margin between the log-probabilities a token of the two answers; a pair a unit."""

    unit = "pairs"

    def __init__(self, config: SimPOConfig) -> None:
        self.beta, self.gamma = config.beta, config.gamma

    def units(self, batch: Batch) -> int:
        """Pairs."""
        return answers_of(batch).count // 2

    def prepare(self, policy: SharedPolicy, batches: Iterable[Batch]) -> None:
        """Nothing: each pair's loss is its own."""

    def __call__(self, policy: Policy, batch: Batch) -> LossOutput:
        """The loss summed over the pairs."""
        pairs = score_pairs(policy, batch)
        chosen_P, rejected_P = pairs.means()
        total = -F.logsigmoid(self.beta * (chosen_P - rejected_P) - self.gamma).sum()
        return LossOutput(total, pair_metrics(pairs, self.beta * chosen_P, self.beta * rejected_P))
