"""How much memory this process has had at most, and whether it ran out."""

from __future__ import annotations

import resource

import torch

GIB = 1024**3


def memory_gib(device: torch.device) -> float:
    """The highest memory so far: of the GPU, or resident on a machine without."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def is_out_of_memory(error: BaseException) -> bool:
    """True for what a GPU's allocator, the processor's, or Python raises where memory runs out."""
    allocator = "can't allocate memory" in str(error) or "not enough memory" in str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or allocator
