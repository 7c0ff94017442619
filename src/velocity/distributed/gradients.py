"""Norm, clipping and the check for non-finite values, where an engine keeps plain gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from velocity.distributed.engine import StepStats


def clip_or_drop(parameters: Iterable[Tensor], clipping: float) -> StepStats:
    """Scale the gradients down to a norm of `clipping` (0: as they are); drop all where one is not finite.

    An optimizer leaves parameters without a gradient alone, so a dropped step changes nothing.
    """
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if not math.isfinite(float(norm)):
        for parameter in parameters:
            parameter.grad = None
        return StepStats(float(norm), skipped=True)
    if 0 < clipping < float(norm):
        torch.nn.utils.clip_grads_with_norm_(parameters, clipping, norm)
    return StepStats(float(norm), skipped=False)
