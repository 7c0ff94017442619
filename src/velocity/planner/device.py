"""What every plan chooses alike: how many processes, in which precision, with how much memory for each."""

from __future__ import annotations

from typing import Literal

from velocity.config.job import Job
from velocity.errors import UserError
from velocity.planner.hardware import GIB, Hardware

Precision = Literal["fp32", "bf16", "fp16"]

USABLE = 0.8  # of a device's memory: the rest is the runtime's, and fragmentation


def choose_processes(job: Job, hardware: Hardware) -> tuple[int, str]:
    """How many processes on this machine, and why; UserError where it has fewer GPUs."""
    if job.launch.processes != "auto":
        if 0 < len(hardware.gpus) < job.launch.processes:
            what = f"launch.processes={job.launch.processes}, but the machine has {len(hardware.gpus)} GPU(s) for us"
            raise UserError(what, "launch.processes", "one process a GPU at most; auto takes them all")
        return job.launch.processes, ""
    if hardware.gpus:
        return len(hardware.gpus), "one a GPU"
    return 1, "one process uses all cores of a machine without a GPU"


def choose_precision(asked: Literal["auto", "fp32", "bf16", "fp16"], hardware: Hardware) -> tuple[Precision, str]:
    """What to compute in, and why; UserError where the machine cannot."""
    if asked == "fp16" and not hardware.gpus:
        raise UserError("precision fp16 needs a GPU", "strategy.precision", "use auto, bf16 or fp32")
    if asked != "auto":
        return asked, ""
    if hardware.bf16:
        return "bf16", "the hardware multiplies in bf16"
    if hardware.gpus:
        return "fp16", "the GPU has no bf16"
    return "fp32", "the processor has no bf16"


def device_bytes(hardware: Hardware, processes: int) -> float:
    """What a process may use of its GPU, or of the machine's memory where there is none."""
    if hardware.gpus:
        return hardware.gpus[0][1] * GIB * USABLE
    return hardware.memory_gib * GIB * USABLE / processes
