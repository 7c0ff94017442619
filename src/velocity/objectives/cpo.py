"""Contrastive preference optimisation without a reference: arXiv 2401.08417, equations 3 and 5. Shape letters: P pairs.

The paper's second term, the likelihood of the chosen answer, is taken a token, as task sft has it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch.nn.functional as F

from velocity.batch import Batch
from velocity.config.objective import CPOConfig
from velocity.objectives.answers import SFTTerm, answers_of, pair_metrics, score_pairs
from velocity.objectives.objective import LossOutput, Policy, SharedPolicy


class CPO:
    """DPO with a uniform reference, beside fine-tuning on the chosen answer; a pair a unit."""

    unit = "pairs"

    def __init__(self, config: CPOConfig) -> None:
        self.beta, self.sft = config.beta, SFTTerm(config.sft_weight)

    def units(self, batch: Batch) -> int:
        """Pairs."""
        return answers_of(batch).count // 2

    def prepare(self, policy: SharedPolicy, batches: Iterable[Batch]) -> None:
        """The SFT term needs the global batch's number of tokens."""
        self.sft.prepare(policy, batches)

    def __call__(self, policy: Policy, batch: Batch) -> LossOutput:
        """The loss summed over the pairs."""
        pairs = score_pairs(policy, batch)
        total = -F.logsigmoid(self.beta * (pairs.chosen_P - pairs.rejected_P)).sum() + self.sft(pairs)
        return LossOutput(total, pair_metrics(pairs, self.beta * pairs.chosen_P, self.beta * pairs.rejected_P))
