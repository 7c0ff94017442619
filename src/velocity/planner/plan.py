"""Every `auto` of a job becomes a value, with the reason. It reads config.json and file sizes, never weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from velocity.config.job import Job, LoadedJob
from velocity.config.strategy import StrategyConfig
from velocity.errors import UserError
from velocity.models.locate import weight_files
from velocity.planner.hardware import GIB, Hardware

Precision = Literal["fp32", "bf16", "fp16"]
Zero = Literal[0, 1, 2, 3]

USABLE = 0.8  # of a device's memory: the rest is the runtime's, and fragmentation
# What configurations call them: GPT-2, GPT-Neo and MPT have names of their own.
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
HIDDEN = ("hidden_size", "n_embd", "d_model")
LINEAR_WIDTH = 32  # inputs and outputs of a layer's seven linear maps, in hidden widths: an upper estimate
CPU_MICRO_TOKENS = 1024  # measured: more tokens at once are no faster on a processor, and take memory


@dataclass(frozen=True)
class ModelSize:
    """What a plan needs to know of a model: parameters, layers, hidden width."""

    parameters: int
    layers: int
    hidden: int


def model_size(folder: Path) -> ModelSize | None:
    """Read from config.json and the weights' file sizes; None where the folder has neither (a hub id not fetched)."""
    size_bytes = _weight_bytes(folder)
    if not (folder / "config.json").is_file() or size_bytes is None:
        return None
    config = json.loads((folder / "config.json").read_text())
    config = config.get("text_config", config)
    stored = 4 if config.get("dtype", config.get("torch_dtype")) == "float32" else 2
    parameters = size_bytes // stored
    layers, hidden = (next((config[name] for name in names if name in config), 1) for names in (LAYERS, HIDDEN))
    return ModelSize(parameters, layers, hidden)


def _weight_bytes(folder: Path) -> int | None:
    """Of the files that transformers loads; where a hub's shards are not fetched, what their index says."""
    names = weight_files(folder)
    if names and all((folder / name).is_file() for name in names):
        return sum((folder / name).stat().st_size for name in names)
    index = folder / "model.safetensors.index.json"
    metadata = json.loads(index.read_text()).get("metadata", {}) if index.is_file() else {}
    total: int | None = metadata.get("total_size")
    return total


def resolve(loaded: LoadedJob, hardware: Hardware, model_folder: Path) -> LoadedJob:
    """The job without an `auto` that a plan decides; the origin of what was chosen reads `planner: reason`."""
    job = loaded.job
    if job.strategy.precision == "fp16" and not hardware.gpus:
        raise UserError("precision fp16 needs a GPU", "strategy.precision", "use auto, bf16 or fp32")
    size = model_size(model_folder)
    processes, why_processes = _processes(job, hardware)
    precision, why_precision = _precision(job, hardware)
    zero, why_zero = _zero(job, hardware, processes, precision, size)
    recompute, micro, why_micro = _micro(job, hardware, processes, precision, size, zero)
    choices = {
        "launch.processes": why_processes,
        "strategy.precision": why_precision,
        "strategy.zero": why_zero,
        "strategy.recompute": why_micro if job.strategy.recompute == "auto" else "",
        "batch.micro": why_micro if job.batch.micro == "auto" else "",
    }
    strategy = StrategyConfig(zero=zero, precision=precision, recompute=cast(Any, recompute))
    update = {
        "strategy": strategy,
        "batch": job.batch.model_copy(update={"micro": micro}),
        "launch": job.launch.model_copy(update={"processes": processes}),
    }
    origins = {**loaded.origins, **{key: f"planner: {why}" for key, why in choices.items() if why}}
    return LoadedJob(job.model_copy(update=update), origins, loaded.path)


def _processes(job: Job, hardware: Hardware) -> tuple[int, str]:
    if job.launch.processes != "auto":
        if 0 < len(hardware.gpus) < job.launch.processes:
            what = f"launch.processes={job.launch.processes}, but the machine has {len(hardware.gpus)} GPU(s) for us"
            raise UserError(what, "launch.processes", "one process a GPU at most; auto takes them all")
        return job.launch.processes, ""
    if hardware.gpus:
        return len(hardware.gpus), "one a GPU"
    return 1, "one process uses all cores of a machine without a GPU"


def _precision(job: Job, hardware: Hardware) -> tuple[Precision, str]:
    if job.strategy.precision != "auto":
        return job.strategy.precision, ""
    if job.strategy.zero == 0:
        return "fp32", "zero: 0 is for fp32; with zero: 1 the planner may choose 16 bit"
    if hardware.bf16:
        return "bf16", "the hardware multiplies in bf16; master weights stay in fp32"
    if hardware.gpus:
        return "fp16", "the GPU has no bf16; master weights stay in fp32"
    return "fp32", "the processor has no bf16"


def _device_bytes(hardware: Hardware, processes: int) -> float:
    if hardware.gpus:
        return hardware.gpus[0][1] * GIB * USABLE
    return hardware.memory_gib * GIB * USABLE / processes


def state_bytes(job: Job, size: ModelSize, precision: Precision, zero: Zero, processes: int) -> float:
    """Bytes a rank holds of weights, gradients and AdamW's state: arXiv 1910.02054, section 3.1.

    Of an adapter's model the weights alone, perhaps in 4 or 8 bit; and beside a model that is trained whole the
    weights of a live reference, split over the ranks.
    """
    bytes_each = 4 if precision == "fp32" else 2
    weights, trained, reference = float(size.parameters * bytes_each), size.parameters, 0.0
    if job.adapter is not None:
        trained = job.adapter.rank * size.layers * size.hidden * LINEAR_WIDTH
        weights = size.parameters * (job.adapter.bits / 8 if job.adapter.bits else bytes_each) + trained * bytes_each
    elif job.reference == "live":
        reference = weights / processes
    optimizer = 8 if precision == "fp32" else 12
    return (
        weights / (processes if zero >= 3 else 1)
        + trained * bytes_each / (processes if zero >= 2 else 1)
        + trained * optimizer / (processes if zero >= 1 else 1)
        + reference
    )


def _zero(
    job: Job, hardware: Hardware, processes: int, precision: Precision, size: ModelSize | None
) -> tuple[Zero, str]:
    if job.strategy.zero != "auto":
        return job.strategy.zero, ""
    lowest: Zero = 0 if precision == "fp32" else 1
    if processes == 1 or size is None:
        return lowest if processes == 1 else 2, "one process" if processes == 1 else "the model's size is not known yet"
    budget = _device_bytes(hardware, processes) / 2  # the other half is for activations
    most = 2 if job.adapter and job.adapter.bits else 3  # quantised weights are not split
    for zero in (1, 2, 3):
        need = state_bytes(job, size, precision, zero, processes)
        if need <= budget or zero == most:
            return zero, f"{need / GIB:.1f} GiB of model state a rank, of {budget / GIB:.1f} GiB for it"
    raise AssertionError("the highest stage always returns")


def _micro(
    job: Job, hardware: Hardware, processes: int, precision: Precision, size: ModelSize | None, zero: Zero
) -> tuple[str, int, str]:
    """Recomputation and rows a micro-batch: the most rows whose activations fit beside the model's state."""
    rows = job.batch.rows or max(1, (job.batch.tokens or 0) // job.data.sequence_length)
    most = max(1, rows // processes)
    if not hardware.gpus:
        most = min(most, max(1, CPU_MICRO_TOKENS // job.row_tokens))
    recompute = job.strategy.recompute
    if size is None:
        micro = 1 if job.batch.micro == "auto" else job.batch.micro
        return "layers" if recompute == "auto" else recompute, micro, "the model's size is not known yet"
    free = _device_bytes(hardware, processes) - state_bytes(job, size, precision, zero, processes)
    # 34 bytes a token, layer and hidden unit in 16 bit, without attention's square: arXiv 2205.05198, equation 2
    token_bytes = size.layers * size.hidden * 34 * (2 if precision == "fp32" else 1)
    row_bytes = float(token_bytes * job.row_tokens)
    if recompute == "auto":
        recompute = "none" if free >= row_bytes else "layers"
    if recompute == "layers":
        row_bytes = row_bytes / 17 + row_bytes / size.layers  # a layer's input is kept, one layer lives whole
    micro = min(most, max(1, int(free // row_bytes))) if job.batch.micro == "auto" else job.batch.micro
    why = f"{row_bytes / GIB:.2f} GiB of activations a row, {max(free, 0) / GIB:.1f} GiB free beside the model's state"
    return recompute, micro, why
