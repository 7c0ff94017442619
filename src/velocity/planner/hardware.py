"""What this machine has: processor, memory, GPUs. Read from the system, without torch."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

GIB = 1024**3
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
CONTAINER_CORES = Path("/sys/fs/cgroup/cpu.max")  # "quota period" in microseconds, or "max period"


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


def detect(visible: Sequence[str] | None = None) -> Hardware:
    """The machine this runs on; of its GPUs those `visible` (by index or the beginning of an id), or all for None."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = max(1, min(cores, int(_container_cores())))
    memory_gib = min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), _container_bytes()) / GIB
    bf16 = any(flag in flags for flag in ("avx512_bf16", "amx_bf16", " bf16 "))
    return Hardware(cores, round(memory_gib, 1), bf16, _gpus(visible, memory_gib))


def _container_bytes() -> float:
    """The memory that our control group may use; infinite where nothing limits it."""
    limit = CONTAINER_LIMIT.read_text().strip() if CONTAINER_LIMIT.is_file() else "max"
    return float(limit) if limit.isdigit() else float("inf")


def _container_cores() -> float:
    """The cores that our control group may keep busy; very many where nothing limits it."""
    words = CONTAINER_CORES.read_text().split() if CONTAINER_CORES.is_file() else ["max"]
    return int(words[0]) / int(words[1]) if words[0].isdigit() else 1e9


def _gpus(visible: Sequence[str] | None, machine_gib: float) -> tuple[tuple[str, float, float], ...]:
    """Name, memory and capability; where the driver tells no memory, the GPU shares the machine's."""
    if not shutil.which("nvidia-smi"):
        return ()
    query = ["nvidia-smi", "--query-gpu=index,uuid,name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    rows = [line.split(", ") for line in answer.stdout.splitlines() if answer.returncode == 0]
    seen = [
        (name, float(mebibytes) / 1024 if mebibytes.isdigit() else machine_gib, float(capability))
        for index, uuid, name, mebibytes, capability in rows
        if visible is None or any(index == one or (one and uuid.startswith(one)) for one in visible)
    ]
    return tuple(seen)
