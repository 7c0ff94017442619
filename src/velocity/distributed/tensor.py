"""Tensor parallelism: ranks share each layer's matrices (DeepSpeed AutoTP, arXiv 1909.08053). It knows no engine.

Which matrices are split, and how, is what transformers says of the architecture; the head is split over its
vocabulary, and its logits gathered. A head that shares the embedding's matrix stays whole on every rank.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from velocity.config.combinations import SPLIT_ARCHITECTURES
from velocity.distributed.mesh import Mesh
from velocity.errors import UserError

# What DeepSpeed remembers of a process: one layout for all its engines.
KNOWN = ("mpu", "_TENSOR_MODEL_PARALLEL_GROUP", "_MODEL_PARALLEL_GROUP", "_DATA_PARALLEL_GROUP")
LAYOUT = "ds_autotp_universal_checkpoint_meta"  # DeepSpeed's note on a split parameter


def split_plan(model: nn.Module) -> dict[str, str]:
    """How each matrix is split, by a pattern of its name, in transformers' words.

    UserError where the architecture was not compared with a whole model. A plan alone is no proof: Apertus's leaves
    parameters that act on parts without their whole gradient, which no forward shows.
    """
    config = cast(Any, model).config
    if config.model_type not in SPLIT_ARCHITECTURES:
        what = f"{config.model_type} is not known to compute the same when its matrices are split"
        fix = f"set strategy.tensor: 1, with strategy.zero: 3, or take one of {', '.join(SPLIT_ARCHITECTURES)}"
        raise UserError(what, "strategy.tensor", fix)
    return {**config.base_model_tp_plan, "lm_head": "colwise_gather_output"}


def tell_deepspeed(mesh: Mesh, *, tensor: bool) -> Any:
    """What deepspeed.initialize takes for `mpu`: DeepSpeed's memory of groups, with ours in it; None without.

    It has one for all engines of a process, so the next engine would take its groups from the one before.
    """
    from deepspeed.utils import groups

    forget()
    if tensor:
        _set_groups((groups, mesh.inner_group, mesh.inner_group, _of_same_parts(mesh)))
    return groups.mpu


def _of_same_parts(mesh: Mesh) -> Any:
    """The process group of those that hold the same parts as we do, of other groups' models: DeepSpeed's data axis."""
    columns = tuple(zip(*mesh.groups, strict=True))
    return _process_groups(columns)[mesh.inner_rank]


@functools.cache
def _process_groups(columns: tuple[tuple[int, ...], ...]) -> list[Any]:
    """Every rank must make all of them, in the same order; torch keeps each until the process ends."""
    return [dist.new_group(list(column)) for column in columns]


def forget() -> None:
    """DeepSpeed knows no groups, and splits no matrices: what an engine that did so left behind is gone."""
    from deepspeed.module_inject import set_autotp_mode

    set_autotp_mode(training=False)
    _set_groups((None,) * len(KNOWN))


@contextmanager
def without_groups() -> Iterator[None]:
    """Inside, DeepSpeed knows no groups, and spreads a model over all ranks; outside, an engine has its own again."""
    from deepspeed.utils import groups

    before = tuple(getattr(groups, name) for name in KNOWN)
    _set_groups((None,) * len(KNOWN))
    try:
        yield
    finally:
        _set_groups(before)


def _set_groups(values: tuple[Any, ...]) -> None:
    from deepspeed.utils import groups

    for name, value in zip(KNOWN, values, strict=True):
        setattr(groups, name, value)


def split_of(parameter: Tensor) -> tuple[int, list[int]] | None:
    """The axis along which a parameter is split over our group, and each rank's share; None where all have it whole."""
    layout: dict[str, Any] | None = getattr(parameter, LAYOUT, None)
    if layout is None or layout["partition_dim"] is None:
        return None
    return layout["partition_dim"], list(layout["partition_sizes"])


def whole(parameter: Tensor, mesh: Mesh) -> Tensor:
    """A parameter of which each rank of our group may hold a part: the parts put together, on all of the group."""
    split = split_of(parameter)
    if split is None:
        return parameter.detach()
    axis, sizes = split
    part = parameter.detach().movedim(axis, 0)
    padded = part.new_zeros(max(sizes), *part.shape[1:])  # parts differ in size where the ranks do not divide
    padded[: len(part)] = part
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded, group=mesh.inner_group)
    return torch.cat([one[:size] for one, size in zip(parts, sizes, strict=True)]).movedim(0, axis).contiguous()
