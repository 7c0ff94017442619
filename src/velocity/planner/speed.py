"""How long a step of a planned training job takes: a roofline of arithmetic, memory and links. It knows no memory part.

Rates are those of planner/machines.py times what is commonly reached; `velocity plan --calibrate RUN` corrects them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from velocity.config.training import TrainingJob
from velocity.planner.machines import CORE_FLOPS, DISK_RATE, HOST_RATE, Cluster
from velocity.planner.memory import Model, model_of
from velocity.planner.size import ModelSize

EFFICIENCY = 0.45  # a guess: of the matrix rate, what training reaches (PaLM 0.46, arXiv 2204.02311, table 3)
LINK_EFFICIENCY = 0.7  # a guess, for every link
FILLING_TOKENS = 512  # a guess: a micro-batch of so many tokens reaches half of that on a GPU
FP32_SHARE = 1 / 15  # of a GPU's 16-bit matrix rate: H100 67 of 989 TFLOP/s


@dataclass(frozen=True)
class Speed:
    """Seconds of one optimizer step by what they are spent on, and the tokens that it computes."""

    compute: float
    links: float
    offload: float
    tokens: int

    @property
    def seconds(self) -> float:
        """Of a step: links are used while the GPU computes, offloading comes on top."""
        return max(self.compute, self.links) + self.offload

    @property
    def tokens_per_second(self) -> float:
        """Of all ranks."""
        return self.tokens / self.seconds

    @property
    def bound(self) -> str:
        """What most of a step waits for."""
        times = {"arithmetic": self.compute, "links": self.links, "offload": self.offload}
        return max(times, key=lambda name: times[name])


def rows_a_step(job: TrainingJob) -> int:
    """Rows of the global batch."""
    return job.batch.rows or max(1, (job.batch.tokens or 0) // job.data.sequence_length)


def inner_of(job: TrainingJob) -> int:
    """Ranks that share one model's micro-batches."""
    strategy = job.strategy
    return max(_degree(one) for one in (strategy.tensor, strategy.pipeline, strategy.sequence))


def _degree(value: Any) -> int:
    return 1 if value == "auto" else int(value)


def step_speed(job: TrainingJob, size: ModelSize, cluster: Cluster, processes: int) -> Speed:
    """What a step of the planned job takes."""
    model, inner = model_of(job, size, processes), inner_of(job)
    rows = rows_a_step(job)
    ours = math.ceil(rows / max(1, processes // inner))
    micros = math.ceil(ours / int(job.batch.micro))
    compute = _compute(job, model, cluster, ours, processes) * _bubble(job, micros)
    links = _links(job, model, cluster, processes, micros)
    return Speed(compute, links, _offload(job, model, cluster, processes, micros), rows * job.row_tokens)


def token_flops(job: TrainingJob, size: ModelSize) -> float:
    """Of one token, forward and backward: arXiv 2204.02311, appendix B; recomputation runs forward twice."""
    forward = 2.0 * size.met + 2 * size.layers * size.attended * job.data.sequence_length  # causal: half of a square
    passes = 2.0 if job.adapter is not None else 3.0
    passes += job.strategy.recompute == "layers"
    passes += job.adapter is None and job.reference == "live"
    return forward * passes


def _compute(job: TrainingJob, model: Model, cluster: Cluster, rows: int, processes: int) -> float:
    """Seconds of arithmetic, or of reading memory where that takes longer, for a rank's rows."""
    inner = inner_of(job)
    tokens = rows * job.row_tokens / inner
    if not cluster.hardware.gpus:
        share = cluster.hardware.cores * cluster.nodes / processes
        return tokens * token_flops(job, model.size) / (CORE_FLOPS * share)
    gpu = cluster.gpu
    here = int(job.batch.micro) * job.row_tokens / inner
    rate = gpu.flops * EFFICIENCY * here / (here + FILLING_TOKENS)
    if job.strategy.precision == "fp32":
        rate *= FP32_SHARE
    weights = (model.trained * model.each + model.frozen_bytes) * 3 * math.ceil(rows / int(job.batch.micro))
    states = model.trained / model.shards * 28  # reads and writes of AdamW's step
    return max(tokens * token_flops(job, model.size) / rate, weights / gpu.memory_rate) + states / gpu.memory_rate


def _bubble(job: TrainingJob, micros: int) -> float:
    """How much longer a step takes because the stages of a pipeline wait for each other: arXiv 1811.06965."""
    stages = _degree(job.strategy.pipeline)
    return (micros + stages - 1) / micros


def _links(job: TrainingJob, model: Model, cluster: Cluster, processes: int, micros: int) -> float:
    """Seconds of traffic between ranks."""
    if processes == 1:
        return 0.0
    a_node = max(1, len(cluster.hardware.gpus)) if cluster.hardware.gpus else processes
    near = cluster.gpu.link * LINK_EFFICIENCY if cluster.hardware.gpus else HOST_RATE / 10
    far = min(near, cluster.network * LINK_EFFICIENCY / a_node)
    zero = int(job.strategy.zero)
    trained, weights = model.trained * model.each, model.trained * model.each + model.frozen_bytes
    # gradients once a step, or once a micro-batch; stage 3 gathers the weights twice a micro-batch: arXiv 1910.02054, 7
    a_step = {0: 2 * trained, 1: 2 * trained, 2: trained * (micros + 1), 3: (2 * weights + trained) * micros}[zero]
    moved = a_step * (model.shards - 1) / model.shards
    seconds = moved / (far if processes > a_node else near)
    tokens = micros * int(job.batch.micro) * job.row_tokens
    width = model.size.hidden * model.each * model.size.layers
    tensor, sequence = _degree(job.strategy.tensor), _degree(job.strategy.sequence)
    again = 1.5 if job.strategy.recompute == "layers" else 1.0
    if tensor > 1:  # four sums of a layer's output: arXiv 1909.08053, figure 4
        seconds += 4 * again * 2 * (tensor - 1) / tensor * tokens * width / (near if tensor <= a_node else far)
    if sequence > 1:  # four exchanges of the states, forward and backward: arXiv 2309.14509, 3.2
        seconds += 8 * again * tokens / sequence * width / (near if sequence <= a_node else far)
    return seconds


def _offload(job: TrainingJob, model: Model, cluster: Cluster, processes: int, micros: int) -> float:
    """Seconds of traffic to host memory and disk, and of the optimizer's step on the host."""
    offload = job.strategy.offload
    link, ranks = cluster.gpu.host_link * LINK_EFFICIENCY, max(1, processes // cluster.nodes)
    part, seconds = model.trained / model.shards, 0.0
    if offload.optimizer in ("cpu", "nvme"):
        seconds += part * model.each * (micros + 1) / link
        seconds += part * ranks * 28 / HOST_RATE * offload.ratio
    if offload.optimizer == "nvme":
        seconds += part * ranks * 24 / DISK_RATE  # read and written
    if offload.parameters in ("cpu", "nvme"):
        weights = (model.trained * model.each + model.frozen_bytes) / model.shards * 2 * micros
        seconds += weights / link + (weights * ranks / DISK_RATE if offload.parameters == "nvme" else 0.0)
    if offload.activations == "cpu":
        tokens = micros * int(job.batch.micro) * job.row_tokens
        seconds += 2 * tokens * model.size.hidden * model.size.layers * model.each / link
    return seconds
