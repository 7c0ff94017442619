"""Every `auto` of a training job becomes a value, with the reason. It reads config.json and file sizes, no weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from velocity.config.job import LoadedJob
from velocity.config.training import TrainingJob
from velocity.planner.device import Precision, choose_precision, choose_processes, device_bytes
from velocity.planner.hardware import GIB, Hardware
from velocity.planner.size import ModelSize, model_size

Zero = Literal[0, 1, 2, 3]

LINEAR_WIDTH = 32  # inputs and outputs of a layer's seven linear maps, in hidden widths: an upper estimate
CPU_MICRO_TOKENS = 1024  # measured: more tokens at once are no faster on a processor, and take memory


def resolve(loaded: LoadedJob[TrainingJob], hardware: Hardware, model_folder: Path) -> LoadedJob[TrainingJob]:
    """The job without an `auto` that a plan decides; the origin of what was chosen reads `planner: reason`."""
    job = loaded.job
    size = model_size(model_folder)
    processes, why_processes = choose_processes(job, hardware)
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
    offload = {"optimizer": "none", "parameters": "none"}
    settled: dict[str, Any] = {"zero": zero, "precision": precision, "recompute": recompute}
    degrees = {name: 1 for name in ("tensor", "pipeline", "sequence") if getattr(job.strategy, name) == "auto"}
    offload = {name: value for name, value in offload.items() if getattr(job.strategy.offload, name) == "auto"}
    settled["offload"] = job.strategy.offload.model_copy(update=offload)
    strategy = job.strategy.model_copy(update={**settled, **degrees})
    update = {
        "strategy": strategy,
        "batch": job.batch.model_copy(update={"micro": micro}),
        "launch": job.launch.model_copy(update={"processes": processes}),
    }
    origins = {**loaded.origins, **{key: f"planner: {why}" for key, why in choices.items() if why}}
    return LoadedJob(job.model_copy(update=update), origins, loaded.path)


def _precision(job: TrainingJob, hardware: Hardware) -> tuple[Precision, str]:
    if job.strategy.precision == "auto" and job.strategy.zero == 0:
        return "fp32", "zero: 0 is for fp32; with zero: 1 the planner may choose 16 bit"
    precision, why = choose_precision(job.strategy.precision, hardware)
    return precision, f"{why}; master weights stay in fp32" if why and precision != "fp32" else why


def state_bytes(job: TrainingJob, size: ModelSize, precision: Precision, zero: Zero, processes: int) -> float:
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
    job: TrainingJob, hardware: Hardware, processes: int, precision: Precision, size: ModelSize | None
) -> tuple[Zero, str]:
    if job.strategy.zero != "auto":
        return job.strategy.zero, ""
    lowest: Zero = 0 if precision == "fp32" else 1
    if processes == 1 or size is None:
        return lowest if processes == 1 else 2, "one process" if processes == 1 else "the model's size is not known yet"
    budget = device_bytes(hardware, processes) / 2  # the other half is for activations
    most = 2 if job.adapter and job.adapter.bits else 3  # quantised weights are not split
    for zero in (1, 2, 3):
        need = state_bytes(job, size, precision, zero, processes)
        if need <= budget or zero == most:
            return zero, f"{need / GIB:.1f} GiB of model state a rank, of {budget / GIB:.1f} GiB for it"
    raise AssertionError("the highest stage always returns")


def _micro(
    job: TrainingJob, hardware: Hardware, processes: int, precision: Precision, size: ModelSize | None, zero: Zero
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
    free = device_bytes(hardware, processes) - state_bytes(job, size, precision, zero, processes)
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
