"""What a policy scores: rows of packed sequences, as tensors. Data make it, engines and objectives take it.

Shape letters: B rows, S tokens, A answers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

IGNORED = -100


@dataclass(frozen=True)
class Answers:
    """The answers in a micro-batch: the chosen one of every pair, then the rejected ones; or single ones.

    `place_BS[b, s]` is the number of the answer that a label belongs to, -1 where it belongs to none. `lengths_A`
    counts each one's trained tokens. `reference_A` are the reference's log-probabilities, where they are known.
    """

    place_BS: Tensor
    lengths_A: Tensor
    reference_A: Tensor | None = None
    desirable_A: Tensor | None = None  # of single answers
    mismatched: Batch | None = None  # the same prompts, each with another prompt's answer: what KTO's KL term looks at

    @property
    def count(self) -> int:
        """How many there are; both of a pair count."""
        return len(self.lengths_A)


@dataclass(frozen=True)
class Batch:
    """A micro-batch.

    `labels_BS[b, s]` is the token that follows `input_ids_BS[b, s]` in its sequence, or -100 where nothing is trained
    on. `position_ids_BS` restart with each sequence. `lengths_B` holds the lengths of each row's sequences; behind
    their sum a row is padding, which no policy computes. `shared_B` is empty, or holds for each of those sequences how
    many tokens it sees, too, at the beginning of the latest one before it that shares nothing: further answers go on
    from the first one's prompt.
    """

    input_ids_BS: Tensor
    position_ids_BS: Tensor
    labels_BS: Tensor
    lengths_B: tuple[tuple[int, ...], ...]
    records: tuple[str, ...] = field(default=(), repr=False)  # where each sequence came from, for messages
    shared_B: tuple[tuple[int, ...], ...] = ()
    answers: Answers | None = None

    def inputs(self, device: torch.device) -> tuple[Any, ...]:
        """What a scorer is called with, its tensors on `device`."""
        tensors = (self.input_ids_BS, self.position_ids_BS, self.labels_BS)
        return (*(tensor.to(device) for tensor in tensors), self.lengths_B, self.shared_B)

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return sum(map(sum, self.lengths_B))

    @property
    def trained(self) -> int:
        """Labels: tokens that are trained on."""
        return int((self.labels_BS != IGNORED).sum())
