"""What a policy scores: rows of packed sequences, as tensors. Data make it, engines and objectives take it.

Shape letters: B rows, S tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """A micro-batch.

    `labels_BS[b, s]` is the token that follows `input_ids_BS[b, s]` in its sequence, or -100 where nothing is trained
    on. `position_ids_BS` restart with each sequence. `lengths_B` holds the lengths of each row's sequences; behind
    their sum a row is padding, which no policy computes.
    """

    input_ids_BS: Tensor
    position_ids_BS: Tensor
    labels_BS: Tensor
    lengths_B: tuple[tuple[int, ...], ...]
    records: tuple[str, ...] = field(default=(), repr=False)  # where each sequence came from, for messages

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return sum(map(sum, self.lengths_B))

    @property
    def trained(self) -> int:
        """Labels: tokens that are trained on."""
        return int((self.labels_BS != IGNORED).sum())
