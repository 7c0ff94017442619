"""The optimizer of a job: the only place that matches on its kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from velocity.config.sections import (
    AdafactorConfig,
    AdamW8bitConfig,
    AdamWConfig,
    AnyOptimizer,
    LionConfig,
    MuonConfig,
    SGDConfig,
)
from velocity.config.strategy import TrainingOffloadConfig

NOWHERE = TrainingOffloadConfig(optimizer="none", parameters="none")


def build_optimizer(
    model: nn.Module, config: AnyOptimizer, offload: TrainingOffloadConfig = NOWHERE
) -> torch.optim.Optimizer:
    """Over all trainable parameters; matrices decay, norms and biases do not.

    A group's `scale` is its learning rate as a share of the scheduled one (`distributed.engine.set_rate`).
    """
    rate, groups = config.learning_rate, _groups(model, config.weight_decay)
    match config:
        case AdamWConfig() if offload.ratio < 1 or offload.overlap != "none":
            return _deepspeed_adam(groups, config)
        case AdamWConfig():
            # fused: one pass over the memory, on a processor too; the default makes a temporary at each operation
            return torch.optim.AdamW(groups, rate, betas=config.betas, eps=config.epsilon, fused=True)
        case SGDConfig():
            return torch.optim.SGD(groups, rate, momentum=config.momentum)
        case AdafactorConfig():
            return torch.optim.Adafactor(groups, rate)
        case AdamW8bitConfig():
            return _of_bitsandbytes("AdamW8bit")(groups, rate, betas=config.betas, eps=config.epsilon)
        case LionConfig():
            return _of_bitsandbytes("Lion")(groups, rate, betas=config.betas)
        case MuonConfig():
            return _muon(model, config)


def _of_bitsandbytes(name: str) -> Callable[..., torch.optim.Optimizer]:
    import bitsandbytes

    return getattr(bitsandbytes.optim, name)  # type: ignore[no-any-return]


def _deepspeed_adam(groups: list[dict[str, Any]], config: AdamWConfig) -> torch.optim.Optimizer:
    """DeepSpeed's own, which it compiles: it asks for it where a step is split, or overlaps the next forward."""
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    settings: dict[str, Any] = {"lr": config.learning_rate, "betas": config.betas, "eps": config.epsilon}
    return DeepSpeedCPUAdam(groups, **settings)  # type: ignore[no-any-return]


def _muon(model: nn.Module, config: MuonConfig) -> torch.optim.Optimizer:
    """Muon on the matrices of the repeated layers, AdamW on the rest; DeepSpeed's ZeRO knows its class."""
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    inner = {id(p) for p in _of_layers(model)}
    groups: list[dict[str, Any]] = []
    for group in _groups(model, config.weight_decay):
        for muon in (True, False):
            chosen = [p for p in group["params"] if (id(p) in inner and len(_shape(p)) == 2) == muon]
            for parameter in chosen:
                parameter.use_muon = muon  # where DeepSpeed looks for it
            own = {"momentum": config.momentum} if muon else {"betas": config.betas, "eps": config.epsilon}
            scale = 1.0 if muon else config.rest_learning_rate / config.learning_rate
            rate = {"lr": config.learning_rate * scale, "scale": scale}
            groups.append({**group, "params": chosen, "use_muon": muon, **own, **rate})
    return MuonWithAuxAdam([group for group in groups if group["params"]])  # type: ignore[no-any-return]


def _of_layers(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of lists of modules: a transformer's repeated layers, without embeddings and head."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return [parameter for layers in lists for parameter in layers.parameters()]


def _shape(parameter: nn.Parameter) -> torch.Size:
    """Under ZeRO 3 a parameter is an empty stub that remembers its shape."""
    return getattr(parameter, "ds_shape", parameter.shape)


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (matrices if len(_shape(parameter)) >= 2 else others).append(parameter)
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
