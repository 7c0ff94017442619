"""The contract of an inference engine: it holds a model's weights in some way, and runs one forward. No text, no file.

Shape letters: B rows, Q tokens of a row in this forward, K places in the cache, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Step:
    """One forward: tokens, their positions, what they may see, and the cache that they are added to.

    `mask` is what transformers takes: (B, K) with 0 for padding, or (B, 1, Q, K) where the caller says all of it.
    """

    ids_BQ: Tensor
    positions_BQ: Tensor
    mask: Tensor
    cache: Any


class Engine(Protocol):
    """One decoding loop serves all engines: they differ in where weights are, and in who computes together."""

    model: Any  # what a Hugging Face causal model has, no type says
    device: torch.device
    leads: bool  # True on the one rank of a group that writes
    lockstep: bool  # True where all ranks compute together, each with rows of its own
    recovers: bool  # True where a forward that ran out of memory harms nobody else

    def forward(self, step: Step) -> Tensor:
        """Return logits_BV in fp32: of each row's last token."""
        ...

    def run(self, use: Callable[[Any], Tensor]) -> Tensor:
        """Return what a use of the model gives, with its weights in place; all ranks of a group use it alike."""
        ...

    def idle(self) -> None:
        """Take part in a forward of the others, without rows of our own."""
        ...

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag, True where it is so on any rank that computes in step with us."""
        ...

    def same(self, tokens_B: Tensor) -> Tensor:
        """The leader's tokens, on all ranks of our group: rounding must not part them."""
        ...

    def close(self) -> None:
        """Nothing that we made outside the process is left."""
        ...

    def agree(self, value: Any) -> Any:
        """What the leader of our group says, on all ranks of the group."""
        ...
