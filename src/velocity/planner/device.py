"""What every plan chooses alike: how many processes, in which precision, with how much memory for each."""

from __future__ import annotations

from typing import Literal

from velocity.config.job import Job
from velocity.errors import UserError
from velocity.planner.hardware import GIB, Hardware
from velocity.planner.machines import Cluster

Precision = Literal["fp32", "bf16", "fp16"]

USABLE = 0.8  # of a device's memory: the rest is the runtime's, and fragmentation


def choose_processes(job: Job, cluster: Cluster) -> tuple[int, str]:
    """How many processes on these machines, and why; UserError where they have fewer GPUs, or some would have more."""
    asked, nodes = job.launch.processes, cluster.nodes
    gpus = len(cluster.hardware.gpus) * nodes
    if asked == "auto":
        return (gpus, "one a GPU") if gpus else (nodes, "one process uses all cores of a machine without a GPU")
    if 0 < gpus < asked:
        what = f"launch.processes={asked}, but the machine has {gpus} GPU(s) for us"
        what = what if nodes == 1 else f"launch.processes={asked}, but the {nodes} machines have {gpus} GPU(s) for us"
        raise UserError(what, "launch.processes", "one process a GPU at most; auto takes them all")
    if asked % nodes:
        near = max(asked // nodes, 1) * nodes
        what = f"launch.processes={asked} is not a multiple of the {nodes} nodes"
        raise UserError(what, "launch.processes", f"use {near} or {near + nodes}; auto takes one a GPU")
    return asked, ""


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
