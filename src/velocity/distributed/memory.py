"""How much memory this process has had at most, and whether it ran out."""

from __future__ import annotations

import re
from pathlib import Path

import torch

GIB = 1024**3


def memory_gib(device: torch.device) -> float:
    """The highest memory so far: of the GPU, or resident on a machine without."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    # not ru_maxrss: a process that was forked from a larger one begins with that one's
    return int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024 / GIB


def is_out_of_memory(error: BaseException) -> bool:
    """True for what a GPU's allocator, the processor's, or Python raises where memory runs out."""
    allocator = "can't allocate memory" in str(error) or "not enough memory" in str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or allocator
