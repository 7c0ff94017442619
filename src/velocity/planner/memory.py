"""What a rank of a planned training job holds at its peak, part by part, in bytes. It knows no speed.

Two moments can be the peak: backward, with its activations, and the optimizer's step, with its gradients twice.
The formulas follow what DeepSpeed 0.19.8 was measured to allocate (tests/planner/test_measured.py); the model states
are those of arXiv 1910.02054, section 3.1, and what DeepSpeed keeps beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from velocity.config.sections import (
    AdafactorConfig,
    AdamW8bitConfig,
    AnyOptimizer,
    LionConfig,
    MuonConfig,
    SGDConfig,
)
from velocity.config.training import TrainingJob
from velocity.planner.size import ModelSize

CHUNK_BYTES = 1 << 28  # of fp32 logits that exist at once: velocity.models.scorer, which imports torch
LINEAR_WIDTH = 32  # inputs and outputs of a layer's seven linear maps, in hidden widths, where its shapes are unknown
# DeepSpeed's defaults, in elements (deepspeed/runtime/zero/config.py)
BUCKET, PREFETCH, LIVE, PERSISTENT = 500_000_000, 50_000_000, 1_000_000_000, 100_000

# Of stage 3's swapped optimizer so many values are in host memory at once, with state and gradient, in two buffers
SUB_GROUP, SWAPPED = 1_000_000_000, 2 * 16
RUNTIME_BYTES = 1.5 * 2**30  # a guess: the GPU's context, kernels, NCCL's and the matrix library's workspaces
# measured on a processor, resident beside live tensors: imports 0.45 GiB, the data, and what malloc is told to keep
HOST_RUNTIME_BYTES = 0.95 * 2**30
FRAGMENTS = 0.08  # a guess: of what is allocated, what lies between it and fits nothing


@dataclass(frozen=True)
class Parts:
    """Bytes by what they hold."""

    parameters: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    logits: float = 0.0
    buffers: float = 0.0
    allowance: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return float(sum(getattr(self, field.name) for field in fields(self)))

    def describe(self) -> dict[str, float]:
        """Bytes by name."""
        return {field.name: round(getattr(self, field.name)) for field in fields(self)}

    def scaled(self, factors: Mapping[str, float]) -> Parts:
        """Each part times its factor, where it has one."""
        return Parts(**{field.name: getattr(self, field.name) * factors.get(field.name, 1) for field in fields(self)})


@dataclass(frozen=True)
class Memory:
    """Of a rank: what its device holds at most, and its share of the host's memory and of the fast disk."""

    device: Parts
    host: Parts = Parts()
    nvme: float = 0.0


@dataclass(frozen=True)
class Model:
    """The counts that memory follows from: values a rank works with, and bytes of each."""

    size: ModelSize
    trained: float  # values with a gradient
    frozen_bytes: float  # of the weights that have none
    each: int  # bytes of a weight
    split: int  # ranks that share each layer's matrices, or have a part of the layers
    shards: int  # ranks that ZeRO spreads over


def adapter_values(job: TrainingJob, size: ModelSize) -> int:
    """Values of the two factors beside each linear map that has an adapter."""
    assert job.adapter is not None
    if not size.intermediate:
        return job.adapter.rank * size.layers * size.hidden * LINEAR_WIDTH
    width, inner, kv = size.hidden, size.intermediate, size.cached // 2
    maps = {"q_proj": width + size.attended, "k_proj": width + kv, "v_proj": width + kv,
            "o_proj": width + size.attended, "up_proj": width + inner, "down_proj": width + inner}  # fmt: skip
    if size.gated:
        maps["gate_proj"] = width + inner
    named = job.adapter.targets
    chosen = maps.values() if named == "all-linear" else [maps.get(name, width + inner) for name in named]
    return job.adapter.rank * size.layers * sum(chosen)


def model_of(job: TrainingJob, size: ModelSize, processes: int) -> Model:
    """What a rank of the planned job works with."""
    each = 4 if job.strategy.precision == "fp32" else 2
    split = max(_degree(job.strategy.tensor), _degree(job.strategy.pipeline))
    shards = max(1, processes // split)
    if job.adapter is None:
        return Model(size, size.parameters / split, 0.0, each, split, shards)
    frozen = size.parameters * (job.adapter.bits / 8 if job.adapter.bits else each)
    return Model(size, float(adapter_values(job, size)), frozen, each, split, shards)


def _degree(value: Any) -> int:
    return 1 if value == "auto" else int(value)


def optimizer_bytes(optimizer: AnyOptimizer, size: ModelSize, states: int) -> float:
    """Of an optimizer's own state, a trained value; `states` are the bytes of one number in it."""
    match optimizer:
        case SGDConfig():
            return float(states) if optimizer.momentum else 0.0
        case AdamW8bitConfig():
            return 2 * (1 + 4 / 256)  # a byte a moment, and a scale for each block of 256
        case LionConfig():
            return float(states)
        case AdafactorConfig():
            return 2 * states / max(1, size.hidden)  # a row and a column of each matrix
        case MuonConfig():
            outside = min(1.0, size.embedding * (1 if size.tied else 2) / size.parameters)
            return states * (1 + outside)  # one moment for the layers' matrices, two for the rest
        case _:
            return 2.0 * states


def state_bytes(job: TrainingJob, size: ModelSize, precision: str, zero: int, processes: int) -> float:
    """Bytes a rank holds of weights, gradients and the optimizer's state, between backward and step."""
    strategy = job.strategy.model_copy(update={"zero": zero, "precision": precision})
    model = model_of(job.model_copy(update={"strategy": strategy}), size, processes)
    resident = _resident(job.model_copy(update={"strategy": strategy}), model)
    return resident.parameters + resident.gradients + resident.optimizer


def saved_bytes(job: TrainingJob, size: ModelSize, processes: int) -> float:
    """Bytes of a rank's part of a checkpoint: what is trained in full precision, and the optimizer's state."""
    model, states = model_of(job, size, processes), 2 if job.strategy.states == "bf16" else 4
    return model.trained * (states + optimizer_bytes(job.optimizer, size, states)) / model.shards


def _resident(job: TrainingJob, model: Model) -> Parts:
    """Weights, gradients and the optimizer's state of a rank, wherever they lie."""
    zero, shards = int(job.strategy.zero), model.shards
    states = 2 if job.strategy.states == "bf16" else 4
    # ZeRO steps on a flat copy of what it trains, in fp32 too
    master = 0 if zero == 0 and model.each == 4 else states
    own = optimizer_bytes(job.optimizer, model.size, states)
    weights = model.trained * model.each + model.frozen_bytes
    reference = 0.0
    if job.adapter is None and job.reference == "live":
        reference = model.size.parameters * model.each / shards
    return Parts(
        parameters=weights / (shards if zero == 3 else 1) + reference,
        gradients=model.trained * model.each / (shards if zero >= 2 else 1),
        optimizer=model.trained * (master + own) / (shards if zero >= 1 else 1),
    )


def peak(job: TrainingJob, size: ModelSize, processes: int, *, gpu: bool = True) -> Memory:
    """What a rank holds at most.

    On a processor only what a step writes of DeepSpeed's buffers takes memory; a GPU gives all of them.
    """
    model = model_of(job, size, processes)
    resident = _resident(job, model)
    activations, logits = activation_bytes(job, model)
    buffers = _buffers(job, model, touched=not gpu)
    backward = replace(resident, parameters=resident.parameters + gathered_bytes(job, model), activations=activations,
                       logits=logits, buffers=buffers)  # fmt: skip
    step = replace(resident, gradients=_step_gradients(job, model), buffers=buffers)
    memory = _placed(job, model, backward, step)
    allowed = RUNTIME_BYTES + FRAGMENTS * memory.device.total if gpu else HOST_RUNTIME_BYTES
    return replace(memory, device=replace(memory.device, allowance=allowed))


def _step_gradients(job: TrainingJob, model: Model) -> float:
    """Bytes of gradients while the step is prepared: of the rank's part, as they came, flat, and in fp32."""
    zero, shards, each = int(job.strategy.zero), model.shards, model.each
    if zero == 0:
        return model.trained * each * (2 if shards > 1 else 1)  # one buffer of all, to reduce
    part = model.trained / shards
    wide = 0 if each == 4 or job.strategy.states == "bf16" else 4
    flat = part * (2 * each + wide)
    return max(flat, model.trained * each + part * each) if zero == 1 else flat


def settings_of(job: TrainingJob) -> Mapping[str, Any]:
    """The job's own settings of ZeRO."""
    found: Mapping[str, Any] = job.deepspeed.get("zero_optimization", {})
    return found


def _buffers(job: TrainingJob, model: Model, *, touched: bool) -> float:
    """Bytes of the bucket that gradients are reduced in; two where communication overlaps with backward."""
    zero, settings = int(job.strategy.zero), settings_of(job)
    if zero == 0:
        return 0.0
    bucket = float(settings.get("reduce_bucket_size", BUCKET))
    if touched:
        bucket = min(bucket, model.trained)
    count = 2 if settings.get("overlap_comm", zero == 3) and zero != 3 else 1
    return bucket * model.each * count


def gathered_bytes(job: TrainingJob, model: Model) -> float:
    """Bytes of whole weights under stage 3: small tensors always, others until too many values are live."""
    if int(job.strategy.zero) != 3 or model.shards == 1:
        return 0.0
    settings = settings_of(job)
    live = float(settings.get("stage3_max_live_parameters", LIVE))
    threshold = int(settings.get("stage3_param_persistence_threshold", PERSISTENT))
    small = min(model.size.kept(threshold), model.size.parameters)
    least = model.size.layer + model.size.embedding  # what computes must be there
    values = min(max(live, least), model.size.parameters - small) + small
    each = model.each if job.adapter is None else max(model.each, model.frozen_bytes / model.size.parameters)
    return values * each


def activation_bytes(job: TrainingJob, model: Model) -> tuple[float, float]:
    """Bytes of what backward needs of the layers, and of the head's logits with their gradients."""
    size, each = model.size, model.each
    tokens = _tokens(job)
    tensor, stages = _degree(job.strategy.tensor), _degree(job.strategy.pipeline)
    layer = layer_values(size, tensor, fp32=each == 4, frozen=job.adapter is not None)
    layers = size.layers / stages
    if job.strategy.recompute == "layers":
        # a layer's input is kept of all, and one layer lives whole, with the gradients inside it
        kept = 0.0 if job.strategy.offload.activations == "cpu" else layers * size.hidden
        working = layer + _layer_gradients(size, tensor)
    else:
        kept, working = layers * layer, _layer_gradients(size, tensor)
    in_flight = stages  # micro-batches whose activations the first stage holds
    ends = size.hidden * (4 if each == 4 else 3) * tokens * each  # of the last norm, and the head's input
    logits = logits_bytes(model, tokens)
    # three moments: the head's logits; a third of them beside their weight's gradient; and inside the last layer
    head, matrix = (values / model.split for values in (size.embedding, size.hidden * size.inner))
    whole = int(job.strategy.zero) == 2 and model.shards == 1  # measured: there a micro-batch's gradients all wait
    pending = model.trained if whole else min(matrix, model.trained)
    inside = max(working * tokens * each + pending * each, logits / 3 + min(head, model.trained) * each)
    return kept * tokens * each * in_flight + ends + max(0.0, inside - logits), logits


def layer_values(size: ModelSize, tensor: int, *, fp32: bool, frozen: bool = False) -> float:
    """Values that backward needs of one token in one layer, in units of the computing precision.

    Two norms (input, normed unless its weight is frozen, output; the input in fp32), queries, keys and values, what was
    attended to (twice: as heads, and end to end), and of the MLP gate, its activation, up and their product.
    """
    norm = (3 if fp32 else 4) - frozen
    inner = (4 if size.gated else 2) * size.inner
    inside = 3 * size.attended + size.cached + inner
    return 2 * norm * size.hidden + inside / tensor


def _layer_gradients(size: ModelSize, tensor: int) -> float:
    """Values of gradients that live at once inside a layer, a token."""
    return size.hidden + 2 * size.inner / tensor


def logits_bytes(model: Model, tokens: float) -> float:
    """Bytes of one chunk of the head, at most: its log-probabilities, and their gradient twice, in fp32."""
    vocabulary = model.size.vocabulary
    return min(tokens * vocabulary, max(128 * vocabulary, CHUNK_BYTES / 4)) * 12


def _placed(job: TrainingJob, model: Model, backward: Parts, step: Parts) -> Memory:
    """The same bytes on device, host and fast disk, as the job offloads them (arXiv 2101.06840)."""
    offload, places = job.strategy.offload, {"cpu": 0.0, "nvme": 0.0}
    if offload.optimizer not in places and offload.parameters not in places:
        return Memory(max(backward, step, key=lambda parts: parts.total), _kept_on_host(job, model))
    host = _kept_on_host(job, model)
    device = backward
    if offload.optimizer in places:
        states = step.optimizer
        moved = states * (offload.ratio if offload.optimizer == "cpu" else 1.0)
        places[offload.optimizer] += moved
        part = model.trained / model.shards
        # gradients come to the host in fp32, and what is stepped on goes back in 16 bit
        host = replace(host, gradients=part * 4, buffers=part * model.each)
        device = replace(device, gradients=0.0, optimizer=states - moved)
    if offload.parameters in places:
        whole = (model.trained * model.each + model.frozen_bytes) / model.shards
        places[offload.parameters] += whole
        device = replace(device, parameters=device.parameters - whole)
        host = replace(host, parameters=whole if offload.parameters == "cpu" else 0.0)
    if places["nvme"]:
        host = replace(host, buffers=host.buffers + min(model.trained / model.shards, SUB_GROUP) * SWAPPED)
    optimizer = places["cpu"] - host.parameters
    return Memory(device, replace(host, optimizer=max(0.0, optimizer)), places["nvme"])


def _kept_on_host(job: TrainingJob, model: Model) -> Parts:
    """What recomputation keeps, where it waits in host memory."""
    if job.strategy.offload.activations != "cpu":
        return Parts()
    return Parts(activations=model.size.layers * model.size.hidden * _tokens(job) * model.each)


def _tokens(job: TrainingJob) -> float:
    """Of a micro-batch, a rank."""
    micro = 1 if job.batch.micro == "auto" else int(job.batch.micro)
    return micro * job.row_tokens / _degree(job.strategy.sequence)
