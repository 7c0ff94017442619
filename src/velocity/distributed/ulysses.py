"""Sequence parallelism: ranks share the tokens of every row (DeepSpeed-Ulysses, arXiv 2309.14509).

Each rank computes a part of the tokens; only in attention it has all tokens, of a part of the heads. The packed
sequences' bounds are those of the whole, so they stay apart, which DeepSpeed's own layer does not see to: it drops
every mask. To ZeRO these ranks are data-parallel: each adds the gradient of its tokens.

Shape letters: R ranks, H heads, T tokens, D head size, h and t a rank's part of them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_to_all_single

from velocity.distributed.mesh import Mesh


class SequenceRanks:
    """The ranks that share our micro-batches' tokens."""

    def __init__(self, mesh: Mesh) -> None:
        self.group, self.size, self.rank = mesh.inner_group, mesh.inner_size, mesh.inner_rank

    def ours(self, values_T: Tensor) -> Tensor:
        """Our part of the tokens; their number is a multiple of the ranks."""
        return values_T.chunk(self.size)[self.rank]

    def whole(self, values_t: Tensor) -> Tensor:
        """values_T of all tokens, from each rank's part. Its gradient is our part's alone."""
        values_T: Tensor = _Gather.apply(values_t, self)  # type: ignore[no-untyped-call]
        return values_T

    def to_heads(self, states_1HtD: Tensor) -> Tensor:
        """states_1hTD: all tokens, with our heads."""
        _, heads, tokens, size = states_1HtD.shape
        parts_RhtD = states_1HtD.reshape(self.size, heads // self.size, tokens, size)
        swapped_hRtD = self._swap(parts_RhtD).transpose(0, 1)
        return swapped_hRtD.reshape(1, heads // self.size, self.size * tokens, size)

    def to_tokens(self, states_1ThD: Tensor) -> Tensor:
        """states_1tHD: our tokens, with all heads."""
        _, tokens, heads, size = states_1ThD.shape
        parts_RthD = states_1ThD.reshape(self.size, tokens // self.size, heads, size)
        swapped_tRhD = self._swap(parts_RthD).transpose(0, 1)
        return swapped_tRhD.reshape(1, tokens // self.size, self.size * heads, size)

    def _swap(self, parts_R: Tensor) -> Tensor:
        """Part r goes to rank r, and comes from there; backward swaps the gradients back."""
        parts_R = parts_R.contiguous()
        empty_R = torch.empty_like(parts_R)
        swapped_R: Tensor = all_to_all_single(empty_R, parts_R, group=self.group)  # type: ignore[no-untyped-call]
        return swapped_R


class _Gather(torch.autograd.Function):
    """Every rank goes on to the same loss, so a part's gradient is the same on all of them: ours is taken once."""

    @staticmethod
    def forward(context: Any, values_t: Tensor, ranks: SequenceRanks) -> Tensor:
        context.ranks = ranks
        values_T = values_t.new_empty(ranks.size * len(values_t))
        dist.all_gather_into_tensor(values_T, values_t.contiguous(), group=ranks.group)
        return values_T

    @staticmethod
    def backward(context: Any, *gradients_T: Tensor) -> tuple[Tensor, None]:
        return context.ranks.ours(gradients_T[0]).contiguous(), None
