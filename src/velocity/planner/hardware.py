"""What this machine has: processor, memory, GPUs. Read from the system, without torch."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

GIB = 1024**3


@dataclass(frozen=True)
class Hardware:
    """One machine. `gpus` holds (name, memory in GiB, compute capability) of each."""

    cores: int
    memory_gib: float
    cpu_bf16: bool
    gpus: tuple[tuple[str, float, float], ...] = ()

    @property
    def bf16(self) -> bool:
        """True where matrix products in bf16 run in hardware (on a GPU: compute capability 8.0 and up)."""
        return self.gpus[0][2] >= 8.0 if self.gpus else self.cpu_bf16

    def describe(self) -> dict[str, Any]:
        """The same as plain values, for environment.json."""
        return asdict(self)


def detect() -> Hardware:
    """The machine this runs on."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    bf16 = any(flag in flags for flag in ("avx512_bf16", "amx_bf16", " bf16 "))
    return Hardware(cores, round(memory_gib, 1), bf16, _gpus())


def _gpus() -> tuple[tuple[str, float, float], ...]:
    if not shutil.which("nvidia-smi"):
        return ()
    query = ["nvidia-smi", "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    rows = [line.split(", ") for line in answer.stdout.splitlines() if answer.returncode == 0]
    return tuple((name, float(mebibytes) / 1024, float(capability)) for name, mebibytes, capability in rows)
