"""Tokens and heads change places between ranks and back; a gathered value's gradient is each rank's own part."""

from __future__ import annotations

import torch

from tests.pool import Pool
from velocity.config.strategy import StrategyConfig
from velocity.distributed.comm import Ranks
from velocity.distributed.mesh import build_mesh
from velocity.distributed.ulysses import SequenceRanks

HEADS, TOKENS, SIZE = 4, 6, 3


def _ranks(ranks: Ranks) -> SequenceRanks:
    return SequenceRanks(build_mesh(StrategyConfig(tensor=1, pipeline=1, sequence=2), ranks))


def _there_and_back(ranks: Ranks) -> tuple[bool, bool, bool]:
    """Are all tokens of our heads there; are they back where they were; and is the gradient that of the identity?"""
    group = _ranks(ranks)
    whole_1HTD = torch.arange(HEADS * TOKENS * SIZE, dtype=torch.float32).reshape(1, HEADS, TOKENS, SIZE)
    ours_1HtD = whole_1HTD.chunk(2, dim=2)[ranks.rank].clone().requires_grad_()
    heads_1hTD = group.to_heads(ours_1HtD)
    back_1tHD = group.to_tokens(heads_1hTD.transpose(1, 2))
    weight = torch.arange(back_1tHD.numel(), dtype=torch.float32).reshape(back_1tHD.shape)
    (back_1tHD * weight).sum().backward()
    assert ours_1HtD.grad is not None
    return (
        torch.equal(heads_1hTD, whole_1HTD.chunk(2, dim=1)[ranks.rank]),
        torch.equal(back_1tHD.transpose(1, 2), ours_1HtD),
        torch.equal(ours_1HtD.grad, weight.transpose(1, 2)),
    )


def test_tokens_become_heads_and_heads_tokens_again(pool: Pool) -> None:
    assert pool(_there_and_back) == [(True, True, True)] * 2


def _gathered(ranks: Ranks) -> tuple[list[float], list[float]]:
    group = _ranks(ranks)
    ours_t = torch.tensor([1.0, 2.0]).add(10 * ranks.rank).requires_grad_()
    whole_T = group.whole(ours_t)
    (whole_T * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert ours_t.grad is not None
    return whole_T.tolist(), ours_t.grad.tolist()


def test_what_is_gathered_is_whole_and_its_gradient_counts_once(pool: Pool) -> None:
    assert pool(_gathered) == [([1, 2, 11, 12], [1, 2]), ([1, 2, 11, 12], [3, 4])]


def test_our_part_is_one_of_equal_parts_in_order() -> None:
    from velocity.distributed.mesh import Mesh

    parts = [SequenceRanks(Mesh(Ranks(rank, rank, 2), ((0, 1),))).ours(torch.arange(6)).tolist() for rank in (0, 1)]
    assert parts == [[0, 1, 2], [3, 4, 5]]
