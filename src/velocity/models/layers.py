"""What is done to a model's repeated layers: computed again in backward, compiled, gathered whole. It knows no job."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The modules of the longest list of them: a transformer's layers."""
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[])


def recompute_layers(model: Any, *, on_cpu: bool = False) -> None:
    """Each layer keeps its inputs alone, and with `on_cpu` in host memory, pinned where there is a GPU."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if not on_cpu:
        return
    for module in model.modules():
        if hasattr(module, "_gradient_checkpointing_func"):
            module._gradient_checkpointing_func = _checkpoint_on_cpu


def _checkpoint_on_cpu(function: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    # checkpoint saves the inputs under the hooks around it, and what the layer itself would save under its own
    with torch.autograd.graph.save_on_cpu(pin_memory=torch.cuda.is_available()):
        return checkpoint(function, *inputs, use_reentrant=False, **named)


def compile_layers(model: nn.Module) -> None:
    """Each layer is compiled, for rows of any length; names and weights stay."""
    for layer in layers_of(model):
        layer.compile(dynamic=True)


def gather_experts_whole(model: nn.Module) -> None:
    """ZeRO 3 gathers a block with its experts at once, though ranks whose tokens differ visit different experts.

    Else the ranks would wait for each other's weights in different orders. Found by structure: what holds `experts`.
    """
    import deepspeed

    blocks = {type(module) for module in model.modules() if isinstance(getattr(module, "experts", None), nn.Module)}
    if blocks:
        deepspeed.utils.set_z3_leaf_modules(model, list(blocks))
