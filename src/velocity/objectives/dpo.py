"""Direct preference optimisation and its variants. Shape letters: P pairs.

DPO: arXiv 2305.18290, equation 7. Conservative DPO: Mitchell 2023, "A note on DPO with noisy preferences", equation 3.
Robust DPO: arXiv 2403.00409, the unbiased loss. Hinge: arXiv 2309.06657, hinge-norm (SLiC's loss on DPO's rewards).
IPO: arXiv 2310.12036, equation 17, on log-probabilities a token, as its authors do in their experiments.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from velocity.batch import Batch
from velocity.config.objective import DPOConfig
from velocity.objectives.answers import Pairs, Reference, SFTTerm, answers_of, halves, pair_metrics, score_pairs
from velocity.objectives.objective import LossOutput, Policy, SharedPolicy


class DPO:
    """Raises the chosen answer's log-ratio to the reference over that of the rejected one; a pair a unit."""

    unit = "pairs"

    def __init__(self, config: DPOConfig, reference: Reference) -> None:
        self.config, self.reference, self.sft = config, reference, SFTTerm(config.sft_weight)

    def units(self, batch: Batch) -> int:
        """Pairs."""
        return answers_of(batch).count // 2

    def prepare(self, policy: SharedPolicy, batches: Iterable[Batch]) -> None:
        """The SFT term needs the global batch's number of tokens."""
        self.sft.prepare(policy, batches)

    def __call__(self, policy: Policy, batch: Batch) -> LossOutput:
        """The loss summed over the pairs."""
        reference_A = self.reference(batch)  # first: a live one is done before the policy's activations are kept
        pairs = score_pairs(policy, batch)
        reference_chosen_P, reference_rejected_P = halves(reference_A, pairs.chosen_P)
        chosen_P, rejected_P = pairs.chosen_P - reference_chosen_P, pairs.rejected_P - reference_rejected_P
        total = dpo_loss(self.config, chosen_P, rejected_P, pairs).sum() + self.sft(pairs)
        beta = self.config.beta
        return LossOutput(total, pair_metrics(pairs, beta * chosen_P, beta * rejected_P))


def dpo_loss(config: DPOConfig, chosen_P: Tensor, rejected_P: Tensor, pairs: Pairs) -> Tensor:
    """loss_P from the answers' log-ratios to the reference, in nats."""
    beta, smoothing = config.beta, config.label_smoothing
    margin_P = beta * (chosen_P - rejected_P)
    match config.loss:
        case "sigmoid":
            return -(1 - smoothing) * F.logsigmoid(margin_P) - smoothing * F.logsigmoid(-margin_P)
        case "robust":
            clean_P, flipped_P = F.logsigmoid(margin_P), F.logsigmoid(-margin_P)
            return -((1 - smoothing) * clean_P - smoothing * flipped_P) / (1 - 2 * smoothing)
        case "hinge":
            return torch.relu(1 - margin_P)
        case "ipo":
            per_token_P = chosen_P / pairs.chosen_length_P - rejected_P / pairs.rejected_length_P
            return (per_token_P - 1 / (2 * beta)) ** 2
