"""The optimizer of a job: the only place that matches on its kind."""

from __future__ import annotations

import torch
from torch import nn

from velocity.config.sections import AdamWConfig, AnyOptimizer, SGDConfig


def build_optimizer(model: nn.Module, config: AnyOptimizer) -> torch.optim.Optimizer:
    """Over all trainable parameters; matrices decay, norms and biases do not."""
    groups = _groups(model, config.weight_decay)
    match config:
        case AdamWConfig():
            # fused: one pass over the memory, on a processor too; the default makes a temporary at each operation
            return torch.optim.AdamW(groups, config.learning_rate, betas=config.betas, eps=config.epsilon, fused=True)
        case SGDConfig():
            return torch.optim.SGD(groups, config.learning_rate, momentum=config.momentum)
        case _:
            raise NotImplementedError(config.kind)


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            # under ZeRO 3 a parameter is an empty stub that remembers its shape
            shape = getattr(parameter, "ds_shape", parameter.shape)
            (matrices if len(shape) >= 2 else others).append(parameter)
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
