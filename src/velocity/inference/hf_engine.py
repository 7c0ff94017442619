"""Plain transformers: every rank holds a whole model, and works for itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from velocity.distributed.comm import Ranks
from velocity.inference.engine import Step


class TransformersEngine:
    """A Hugging Face model on one device."""

    lockstep = False
    recovers = True
    leads = True

    def __init__(self, model: Any, ranks: Ranks) -> None:
        self.model, self.device = model.to(ranks.device), ranks.device
        self.takes = accepted(model)

    def forward(self, step: Step) -> Tensor:
        """Return logits_BV in fp32: of each row's last token."""
        return last_logits(self.model, step, self.takes)

    def run(self, use: Callable[[Any], Tensor]) -> Tensor:
        """Return what a use of the model gives."""
        return use(self.model)

    def idle(self) -> None:
        """Nobody waits for us."""

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Nobody computes in step with us."""
        return flags

    def same(self, tokens_B: Tensor) -> Tensor:
        """Nobody shares our rows."""
        return tokens_B

    def close(self) -> None:
        """There is nothing outside the process."""

    def agree(self, value: Any) -> Any:
        """Nobody shares our rows."""
        return value


def accepted(model: Any) -> frozenset[str]:
    """Names of what a model's forward takes."""
    return frozenset(inspect.signature(type(model).forward).parameters)


def last_logits(call: Any, step: Step, takes: frozenset[str]) -> Tensor:
    """logits_BV in fp32 behind each row; the head runs on last tokens alone where the model offers it."""
    optional = {"position_ids": step.positions_BQ, "logits_to_keep": 1}
    chosen = {name: value for name, value in optional.items() if name in takes}
    output = call(input_ids=step.ids_BQ, attention_mask=step.mask, past_key_values=step.cache, use_cache=True, **chosen)
    logits_BV: Tensor = output.logits[:, -1].float()
    return logits_BV


def one_token(device: torch.device, cache: Any) -> Step:
    """A forward of next to nothing, for a rank that takes part in one without rows."""
    ids_BQ = torch.zeros((1, 1), dtype=torch.long, device=device)
    return Step(ids_BQ, ids_BQ, torch.ones_like(ids_BQ), cache)
