"""Every `auto` of a generate job becomes a value, with the reason: engine, spread of the weights, batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from velocity.config.inference import AnyInference, InferenceJob, with_engine
from velocity.config.job import LoadedJob
from velocity.errors import UserError
from velocity.planner.device import Precision, choose_precision, choose_processes, device_bytes
from velocity.planner.hardware import GIB
from velocity.planner.machines import Cluster
from velocity.planner.size import ModelSize, model_size

# Rows that grow at the same time. On a processor more are no faster (docs/guides/inference.md); a GPU's arithmetic is
# filled by some hundreds; and where weights are streamed every row more shares the cost of the stream.
CPU_ROWS, GPU_ROWS, STREAM_ROWS = 64, 256, 1024
CACHE_SHARE = 0.8  # of the memory beside the weights: the rest is for one forward's activations
UNKNOWN = "the model's size is not known yet"


@dataclass(frozen=True)
class _Choice:
    """An engine, how it spreads the weights, and why."""

    engine: str
    tensor: int
    offload: str
    why: str


def resolve(loaded: LoadedJob[AnyInference], cluster: Cluster, model_folder: Path) -> LoadedJob[AnyInference]:
    """The job without an `auto` that a plan decides; the origin of what was chosen reads `planner: reason`."""
    job, size, hardware = loaded.job, model_size(model_folder), cluster.hardware
    if job.strategy.kernel_injection and not hardware.gpus:
        raise UserError("DeepSpeed has fused kernels for GPUs alone", "strategy.kernel_injection", "leave it out")
    processes, why_processes = choose_processes(job, cluster)
    precision, why_precision = choose_precision(job.strategy.precision, hardware)
    choice = _engine(job, cluster, processes, precision, size)
    rows, tokens, why_batch = _batch(job, cluster, processes, precision, size, choice)
    asked = job.strategy
    choices = {
        "launch.processes": why_processes,
        "strategy.precision": why_precision,
        "generation.engine": choice.why if job.generation.engine == "auto" else "",
        "strategy.tensor": choice.why if asked.tensor == "auto" else "",
        "strategy.offload.parameters": choice.why if asked.offload.parameters == "auto" else "",
        "batch.rows": why_batch if job.batch.rows == "auto" else "",
        "batch.tokens": why_batch if job.batch.tokens == "auto" else "",
    }
    offload = asked.offload.model_copy(update={"parameters": choice.offload})
    planned = with_engine(job, choice.engine, precision=precision, tensor=choice.tensor, offload=offload)
    update = {
        "batch": job.batch.model_copy(update={"rows": rows, "tokens": tokens}),
        "launch": job.launch.model_copy(update={"processes": processes}),
    }
    origins = {**loaded.origins, **{key: f"planner: {why}" for key, why in choices.items() if why}}
    return LoadedJob(planned.model_copy(update=update), origins, loaded.path)


def _engine(
    job: InferenceJob, cluster: Cluster, processes: int, precision: Precision, size: ModelSize | None
) -> _Choice:
    asked, tensor = job.generation.engine, job.strategy.tensor
    offload = job.strategy.offload.parameters
    if tensor not in ("auto", 1) and offload in ("cpu", "nvme"):
        what = f"strategy.tensor={tensor} does not go with strategy.offload.parameters={offload}"
        raise UserError(what, "strategy.tensor", "weights are split or streamed; leave one of the two out")
    if asked == "zero" or offload in ("cpu", "nvme"):
        return _zero(job, cluster, processes, precision, size)
    if asked == "deepspeed" or tensor not in ("auto", 1):
        group = processes if tensor == "auto" else tensor
        return _split(group, processes, f"generation.engine: {asked}, over all {processes} process(es)")
    if asked == "transformers" or size is None:
        return _Choice("transformers", 1, "none", UNKNOWN if asked == "auto" else "each rank holds a whole model")
    weights, room = size.parameters * _bytes(precision), device_bytes(cluster.hardware, processes // cluster.nodes)
    row = cache_bytes(size, precision) * (job.generation.max_new_tokens + (job.prompt_tokens or 0))
    fits = f"{weights / GIB:.1f} GiB of weights; a device has {room / GIB:.1f} GiB for us"
    if weights + row <= room:
        return _Choice("transformers", 1, "none", fits)
    groups = [
        count
        for count in range(2, processes // cluster.nodes + 1)
        if processes % count == 0 and size.heads % count == 0
    ]
    fitting = [count for count in groups if tensor == "auto" and (weights + row) / count <= room]
    if fitting:
        return _split(fitting[0], processes, f"{fits}: {fitting[0]} share them")
    return replace(_zero(job, cluster, processes, precision, size), why=f"{fits}, and {processes} are too few")


def _split(group: int, processes: int, why: str) -> _Choice:
    if processes % group:
        what = f"strategy.tensor={group} does not divide launch.processes={processes}"
        raise UserError(what, "strategy.tensor", f"use a divisor, or --processes {group * max(1, processes // group)}")
    return _Choice("deepspeed", group, "none", why)


def _zero(job: InferenceJob, cluster: Cluster, processes: int, precision: Precision, size: ModelSize | None) -> _Choice:
    """Weights wait in host memory where that holds them, else on the fast disk that the job names."""
    offload = job.strategy.offload
    if offload.parameters != "auto":
        return _Choice("zero", 1, offload.parameters, f"weights wait where strategy.offload says: {offload.parameters}")
    weights = size.parameters * _bytes(precision) if size else 0
    host = cluster.hardware.memory_gib * GIB * 0.8
    if weights <= host:
        where = "cpu" if cluster.hardware.gpus else "none"
        return _Choice("zero", 1, where, f"{weights / GIB:.1f} GiB of weights, host memory has {host / GIB:.1f} GiB")
    what = f"{weights / GIB:.1f} GiB of weights do not fit the host memory of {host / GIB:.1f} GiB"
    fix = "name a folder on a fast disk: strategy: {offload: {parameters: nvme, path: …}}"
    raise UserError(what, "strategy.offload", fix)


def _batch(  # noqa: PLR0913 - what a batch follows from
    job: InferenceJob,
    cluster: Cluster,
    processes: int,
    precision: Precision,
    size: ModelSize | None,
    choice: _Choice,
) -> tuple[int, int, str]:
    """The most rows, and places in the cache, that a rank has at once."""
    most = STREAM_ROWS if choice.engine == "zero" else GPU_ROWS if cluster.hardware.gpus else CPU_ROWS
    rows = most if job.batch.rows == "auto" else job.batch.rows
    if size is None or not size.cached:
        tokens = rows * 1024 if job.batch.tokens == "auto" else job.batch.tokens
        return rows, tokens, UNKNOWN
    room = device_bytes(cluster.hardware, processes // cluster.nodes)
    resident = size.parameters * _bytes(precision) / (choice.tensor if choice.engine == "deepspeed" else 1)
    if choice.engine == "zero":
        resident = 0.0 if choice.offload != "none" else resident / processes
    each = cache_bytes(size, precision) / choice.tensor
    fitting = max(1, int((room - resident) * CACHE_SHARE / each))
    tokens = fitting if job.batch.tokens == "auto" else job.batch.tokens
    why = f"{each / 1024:.0f} KiB of keys and values a token, {(room - resident) / GIB:.1f} GiB beside the weights"
    return rows, tokens, why


def cache_bytes(size: ModelSize, precision: Precision) -> float:
    """Of the keys and values of one token in all layers."""
    return float(size.layers * size.cached * _bytes(precision))


def _bytes(precision: Precision) -> int:
    return 4 if precision == "fp32" else 2
