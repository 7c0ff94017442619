"""Odds ratio preference optimisation: arXiv 2403.07691, equations 4 and 7. Shape letters: P pairs.

The SFT term is that of the answer given the prompt, as the paper has it; the authors' code, and TRL, train on the
prompt's tokens as well.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from velocity.batch import Batch
from velocity.config.objective import ORPOConfig
from velocity.objectives.answers import SFTTerm, answers_of, pair_metrics, score_pairs
from velocity.objectives.objective import LossOutput, Policy, SharedPolicy


class ORPO:
    """Fine-tuning on the chosen answer, with the odds of it held over those of the rejected one; a pair a unit."""

    unit = "pairs"

    def __init__(self, config: ORPOConfig) -> None:
        self.beta, self.sft = config.beta, SFTTerm(1.0)

    def units(self, batch: Batch) -> int:
        """Pairs."""
        return answers_of(batch).count // 2

    def prepare(self, policy: SharedPolicy, batches: Iterable[Batch]) -> None:
        """The SFT term needs the global batch's number of tokens."""
        self.sft.prepare(policy, batches)

    def __call__(self, policy: Policy, batch: Batch) -> LossOutput:
        """The loss summed over the pairs."""
        pairs = score_pairs(policy, batch)
        chosen_P, rejected_P = pairs.means()
        ratio_P = log_odds(chosen_P) - log_odds(rejected_P)
        total = -self.beta * F.logsigmoid(ratio_P).sum() + self.sft(pairs)
        return LossOutput(total, pair_metrics(pairs, self.beta * chosen_P, self.beta * rejected_P))


def log_odds(logps_P: Tensor) -> Tensor:
    """log(p / (1 - p)) from log p; where fp32 says that p is 1, of the largest p below it."""
    logps_P = logps_P.clamp(max=-torch.finfo(torch.float32).eps)  # the odds of certainty are infinite
    return logps_P - torch.log(-torch.expm1(logps_P))
