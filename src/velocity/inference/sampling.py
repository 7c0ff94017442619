"""From logits to tokens, each row by itself: its choice depends on its own logits, history and random number alone.

Shape letters: B rows, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.generation.logits_process import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from velocity.config.inference import GenerationConfig


class Sampler:
    """Chooses as a job's `generation` says; the order is transformers': penalty, temperature, top-k, top-p, min-p."""

    def __init__(self, config: GenerationConfig) -> None:
        self.config = config
        self.remembers = config.repetition_penalty != 1.0
        self.warpers = [
            *([TopKLogitsWarper(config.top_k)] if config.top_k else []),
            *([TopPLogitsWarper(config.top_p)] if config.top_p < 1 else []),
            *([MinPLogitsWarper(config.min_p)] if config.min_p else []),
        ]

    def choose(self, logits_BV: Tensor, seen_BV: Tensor | None, uniform_B: Tensor) -> Tensor:
        """tokens_B; `seen_BV` marks the tokens that a row has already, `uniform_B` is a number in [0, 1) each.

        Sampled by the inverse of the cumulated probabilities: one random number a row and token, so that neither a
        row's neighbours nor the device move it.
        """
        if seen_BV is not None:
            penalty = self.config.repetition_penalty
            punished = torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
            logits_BV = torch.where(seen_BV, punished, logits_BV)
        if self.config.temperature == 0:
            return logits_BV.argmax(dim=-1)
        scores_BV = logits_BV / self.config.temperature
        for warper in self.warpers:
            scores_BV = warper(None, scores_BV)
        cumulated_BV = scores_BV.softmax(dim=-1).double().cumsum(dim=-1)
        threshold_B = uniform_B.double() * cumulated_BV[:, -1]
        return (cumulated_BV <= threshold_B[:, None]).sum(dim=-1).clamp(max=logits_BV.shape[1] - 1)


def logps_of(logits_BV: Tensor, tokens_B: Tensor) -> Tensor:
    """logps_B: the model's own log-probability of each token, before penalty and temperature."""
    chosen_B = logits_BV.gather(1, tokens_B[:, None])[:, 0]
    return chosen_B - logits_BV.logsumexp(dim=-1)


def finite(logits_BV: Tensor) -> Tensor:
    """True for each row that has a likeliest token."""
    return logits_BV.amax(dim=-1).isfinite()
