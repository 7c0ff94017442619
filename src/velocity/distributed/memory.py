"""How much memory this process has had at most."""

from __future__ import annotations

import resource

import torch

GIB = 1024**3


def memory_gib(device: torch.device) -> float:
    """The highest memory so far: of the GPU, or resident on a machine without."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
