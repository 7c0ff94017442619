"""Which ranks share a model and which share a global batch, and sums that count each group once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.pool import Pool
from velocity.config.strategy import StrategyConfig
from velocity.distributed.comm import Ranks
from velocity.distributed.mesh import Mesh, build_mesh, groups_of


def strategy(**degrees: Any) -> StrategyConfig:
    return StrategyConfig(**{"tensor": 1, "pipeline": 1, "sequence": 1, **degrees})


@pytest.mark.parametrize(
    ("degrees", "groups"),
    [
        ({}, ((0,), (1,), (2,), (3,))),
        ({"tensor": 2}, ((0, 1), (2, 3))),
        ({"sequence": 2}, ((0, 1), (2, 3))),
        ({"pipeline": 2}, ((0, 2), (1, 3))),  # rank = stage x 2 + data
        ({"tensor": 4}, ((0, 1, 2, 3),)),
        ({"pipeline": 4}, ((0, 1, 2, 3),)),
    ],
)
def test_ranks_are_grouped_as_deepspeed_lays_them_out(degrees: Any, groups: Any):
    assert groups_of(strategy(**degrees), 4) == groups


def test_a_rank_knows_its_group_and_its_place_in_it():
    groups = groups_of(strategy(pipeline=2), 4)
    found = [(mesh.data_rank, mesh.inner_rank) for mesh in (Mesh(Ranks(rank, rank, 4), groups) for rank in range(4))]
    assert found == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert (Mesh(Ranks(0, 0, 4), groups).data_size, Mesh(Ranks(0, 0, 4), groups).inner_size) == (2, 2)


def _sum(ranks: Ranks, degrees: Any) -> float:
    mesh = build_mesh(strategy(**degrees), ranks)
    return float(mesh.sum_over_data(torch.tensor(10.0 + ranks.rank)))


@pytest.mark.parametrize(("degrees", "total"), [({}, 21.0), ({"tensor": 2}, 10.0), ({"pipeline": 2}, 10.0)])
def test_a_sum_over_data_counts_the_first_rank_of_each_group(pool: Pool, degrees: Any, total: float):
    assert pool(_sum, degrees) == [total, total]
