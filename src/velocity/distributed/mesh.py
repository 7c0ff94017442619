"""How the ranks share the work: who holds which data, who shares one model. It knows no engine.

Ranks that share a model take the same batches. Beside data there is at most one other axis: DeepSpeed combines no two
of tensor, pipeline and sequence in training.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from velocity.config.strategy import StrategyConfig
from velocity.distributed import comm
from velocity.distributed.comm import Ranks


@dataclass(frozen=True)
class Mesh:
    """The groups of ranks that share a model, and our place among them.

    `groups` holds the ranks of each group. Group g works on share g of a global batch.
    """

    ranks: Ranks
    groups: tuple[tuple[int, ...], ...]
    inner_group: Any = None  # torch's process group of those that share our model; None where we are alone

    @property
    def data_size(self) -> int:
        """How many groups share a global batch."""
        return len(self.groups)

    @property
    def data_rank(self) -> int:
        """Which share of it is ours."""
        return next(number for number, group in enumerate(self.groups) if self.ranks.rank in group)

    @property
    def inner_size(self) -> int:
        """How many ranks share our model."""
        return len(self.groups[0])

    @property
    def inner_rank(self) -> int:
        """Which of them we are."""
        return self.groups[self.data_rank].index(self.ranks.rank)

    def sum_over_data(self, value: Tensor) -> Tensor:
        """The sum over the groups, of each its first rank's value; the same bits on every rank."""
        return comm.sum_over_ranks(value if self.inner_rank == 0 else torch.zeros_like(value))


def groups_of(strategy: StrategyConfig, world_size: int) -> tuple[tuple[int, ...], ...]:
    """The ranks of each group, as DeepSpeed lays them out: pipeline stages far apart, tensor and sequence side by side.

    (deepspeed.runtime.pipe.topology.PipeDataParallelTopology and deepspeed.utils.groups: the last axis is the inner.)
    """
    degrees = strategy.tensor, strategy.pipeline, strategy.sequence
    inner = max(int(degree) for degree in degrees)
    count = world_size // inner
    if strategy.pipeline == inner:
        return tuple(tuple(range(data, world_size, count)) for data in range(count))
    return tuple(tuple(range(data * inner, (data + 1) * inner)) for data in range(count))


def build_mesh(strategy: StrategyConfig, ranks: Ranks) -> Mesh:
    """The mesh of a planned strategy. Every rank calls it: it makes process groups."""
    groups = groups_of(strategy, ranks.world_size)
    if len(groups) == ranks.world_size:
        return Mesh(ranks, groups)
    process_groups = _process_groups(groups)
    return Mesh(ranks, groups, next(made for group, made in process_groups if ranks.rank in group))


@functools.cache
def _process_groups(groups: tuple[tuple[int, ...], ...]) -> list[tuple[tuple[int, ...], Any]]:
    """Every rank must make all of them, in the same order; torch keeps each until the process ends."""
    return [(group, dist.new_group(list(group))) for group in groups]
