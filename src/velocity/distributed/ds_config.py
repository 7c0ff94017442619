"""The DeepSpeed configuration of a job: a pure function of the job and the number of ranks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from velocity.config.generate import GenerateJob
from velocity.config.training import TrainingJob


def deepspeed_config(job: TrainingJob, world_size: int) -> dict[str, Any]:
    """All that deepspeed.initialize is told, with the raw settings of `deepspeed:` merged in.

    ZeRO spreads its state over the processes that share a sequence, too: to DeepSpeed they are data-parallel.
    """
    strategy, micro = job.strategy, job.batch.micro
    assert isinstance(micro, int), "the planner resolves batch.micro"
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": 1,
        "train_batch_size": micro * world_size // (int(strategy.tensor) * int(strategy.pipeline)),
        # The trainer says when a step ends, because micro-batches differ in number from step to step.
        "managed_gradient_accumulation": False,
        # 0.19.8 clips at 1.0 unless told otherwise; stage 0 in fp32 is clipped by our own engine, which sees the norm.
        "gradient_clipping": 0.0 if strategy.zero == 0 else job.optimizer.gradient_clipping,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": _zero(job),
        "steps_per_print": 10**9,
    }
    if strategy.precision != "fp32":
        config[strategy.precision] = {"enabled": True}
    return _merge(config, job.deepspeed)


def _zero(job: TrainingJob) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": job.strategy.zero}
    if job.strategy.zero == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    return zero


def _merge(base: dict[str, Any], raw: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in raw.items():
        inner = merged.get(key)
        merged[key] = _merge(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


def inference_config(job: GenerateJob, world_size: int) -> dict[str, Any]:
    """What DeepSpeed is told of a generate job: init_inference for engine deepspeed, initialize for engine zero."""
    strategy = job.strategy
    if job.generation.engine == "deepspeed":
        split = {"tensor_parallel": {"tp_size": strategy.tensor}, "dtype": strategy.precision}
        return {**split, "replace_with_kernel_inject": strategy.kernel_injection}
    if job.generation.engine != "zero":
        return {}
    zero: dict[str, Any] = {"stage": 3, "stage3_param_persistence_threshold": 0}
    if strategy.offload.parameters != "none":
        zero["offload_param"] = {"device": strategy.offload.parameters}
    if strategy.offload.parameters == "nvme":
        zero["offload_param"]["nvme_path"] = swap_folder(job)
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "train_batch_size": world_size,
        "zero_optimization": zero,
        "steps_per_print": 10**9,
    }
    if strategy.precision != "fp32":
        config[strategy.precision] = {"enabled": True}
    return config


def swap_folder(job: GenerateJob) -> str:
    """Where a run's weights wait on a fast disk: in a folder of its own, which it removes."""
    assert job.strategy.offload.path is not None, "nvme has a path"
    name = hashlib.blake2b(str(Path(job.output).absolute()).encode(), digest_size=8).hexdigest()
    return str(Path(job.strategy.offload.path).expanduser().absolute() / f"velocity-{name}")


@dataclass(frozen=True)
class Shapes:
    """What of a model decides how its weights are streamed: counts of values."""

    largest: int  # of one parameter
    layer: int  # of one of the repeated layers
    together: int  # large parameters that one module holds itself


def streamed(config: Mapping[str, Any], shapes: Shapes, world_size: int, *, gpu: bool) -> dict[str, Any]:
    """The configuration with what its weights' sizes decide.

    A weight is dropped as soon as its module has run: DeepSpeed's defaults keep a billion values gathered, and with
    them smaller models whole. A GPU fetches the next layer while one computes, from pinned memory; on a processor
    there is nothing to overlap. A swap buffer holds one parameter's share of a rank; DeepSpeed's own five take 2 GB.
    """
    zero: dict[str, Any] = dict(config["zero_optimization"])
    zero |= {
        "stage3_max_reuse_distance": 0,
        "stage3_prefetch_bucket_size": shapes.layer if gpu else 0,
        "stage3_max_live_parameters": 2 * shapes.layer + shapes.largest,
    }
    if "offload_param" in zero:
        zero["offload_param"] = {**zero["offload_param"], "pin_memory": gpu}
        if zero["offload_param"]["device"] == "nvme":
            share = -(-shapes.largest // world_size)
            zero["offload_param"] |= {"buffer_size": share, "buffer_count": shapes.together + 2}
    return {**config, "zero_optimization": zero}
