"""The DeepSpeed configuration of a job: a pure function of the job and the number of ranks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from velocity.config.inference import InferenceJob
from velocity.config.training import TrainingJob

Decided: TypeAlias = dict[str, tuple[Any, str]]  # by dotted key: the value, and the key of the job it comes from or why

RAW = "deepspeed: of the job file"


def deepspeed_config(job: TrainingJob, world_size: int) -> dict[str, Any]:
    """All that deepspeed.initialize is told, with the raw settings of `deepspeed:` merged in.

    ZeRO spreads its state over the processes that share a sequence, too: to DeepSpeed they are data-parallel.
    """
    config: dict[str, Any] = {}
    for key, (value, _) in _decided(job, world_size).items():
        *sections, name = key.split(".")
        inner = config
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    return _merge(config, job.deepspeed)


def origins(job: TrainingJob, world_size: int) -> dict[str, str]:
    """For each dotted key of `deepspeed_config`, where its value comes from: a key of the job, or Velocity and why."""
    decided, raw = _decided(job, world_size), set(_leaves(job.deepspeed))
    return {key: RAW if key in raw else decided[key][1] for key in _leaves(deepspeed_config(job, world_size))}


def _leaves(config: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """The dotted keys of all that is no section; an empty section is one."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{before}{key}.")
        else:
            yield f"{before}{key}"


def _decided(job: TrainingJob, world_size: int) -> Decided:
    strategy, micro = job.strategy, job.batch.micro
    assert isinstance(micro, int), "the planner resolves batch.micro"
    decided: Decided = {
        "train_micro_batch_size_per_gpu": (micro, "batch.micro"),
        "gradient_accumulation_steps": (1, "Velocity: the trainer accumulates"),
        "train_batch_size": (
            micro * world_size // (int(strategy.tensor) * int(strategy.pipeline)),
            "Velocity: batch.micro x groups of processes that share a model",
        ),
        # The trainer says when a step ends, because micro-batches differ in number from step to step.
        "managed_gradient_accumulation": (False, "Velocity: the trainer ends steps itself"),
        # 0.19.8 clips at 1.0 unless told otherwise; stage 0 in fp32 is clipped by our own engine, which sees the norm.
        "gradient_clipping": (
            (0.0, "Velocity: it clips by itself where there is no ZeRO")
            if strategy.zero == 0
            else (job.optimizer.gradient_clipping, "optimizer.gradient_clipping")
        ),
        "zero_allow_untested_optimizer": (True, "Velocity: its optimizers are not all DeepSpeed's own"),
    }
    decided |= _zero(job) | _offload(job) | _precision(job)
    decided["steps_per_print"] = (10**9, "Velocity: it reports by itself")
    if int(strategy.tensor) > 1:
        decided["tensor_parallel.autotp_size"] = (int(strategy.tensor), "strategy.tensor")
        # Without a word on the head, DeepSpeed leaves logits split over the vocabulary where it shares the embedding.
        decided["tensor_parallel.vocab_parallel_lm_head"] = (False, "Velocity: logits are whole")
    if int(strategy.pipeline) > 1:
        decided["managed_gradient_accumulation"] = (
            True,
            "Velocity: a pipeline is given a step's micro-batches at once",
        )
    if strategy.compile == "deepcompile":
        decided["compile.deepcompile"] = (True, "strategy.compile")
        decided["managed_gradient_accumulation"] = (True, "Velocity: DeepCompile asks which backward is a step's last")
    return decided


def _zero(job: TrainingJob) -> Decided:
    plus, zero = job.strategy.zero_plus_plus, "zero_optimization"
    decided: Decided = {f"{zero}.stage": (job.strategy.zero, "strategy.zero")}
    if job.strategy.zero == 3:
        decided[f"{zero}.stage3_gather_16bit_weights_on_model_save"] = (True, "Velocity: models are saved whole")
    if job.strategy.zero == 3 and job.optimizer.kind == "muon":
        decided[f"{zero}.reduce_scatter"] = (False, "Velocity: Muon needs gradients whole")
    if plus.quantised_weights:
        decided[f"{zero}.zero_quantized_weights"] = (True, "strategy.zero_plus_plus.quantised_weights")
    if plus.quantised_gradients:
        decided[f"{zero}.zero_quantized_gradients"] = (True, "strategy.zero_plus_plus.quantised_gradients")
    if plus.secondary > 1:
        decided[f"{zero}.zero_hpz_partition_size"] = (plus.secondary, "strategy.zero_plus_plus.secondary")
    return decided


def _offload(job: TrainingJob) -> Decided:
    offload, decided = job.strategy.offload, Decided()
    if offload.optimizer != "none":
        section = "zero_optimization.offload_optimizer"
        decided[f"{section}.device"] = (offload.optimizer, "strategy.offload.optimizer")
        if offload.ratio < 1:
            decided[f"{section}.ratio"] = (offload.ratio, "strategy.offload.ratio")
        # torch's own AdamW steps in host memory, too, and nothing has to be compiled
        decided["zero_force_ds_cpu_optimizer"] = (False, "Velocity: it brings its own optimizer")
    if offload.parameters != "none":
        decided["zero_optimization.offload_param.device"] = (offload.parameters, "strategy.offload.parameters")
    for section, place in (("offload_optimizer", offload.optimizer), ("offload_param", offload.parameters)):
        if place == "nvme":
            decided[f"zero_optimization.{section}.nvme_path"] = (swap_folder(job), "strategy.offload.path")
    if offload.overlap == "superoffload":
        decided["zero_optimization.offload_optimizer.super_offload"] = (True, "strategy.offload.overlap")
    return decided


def _precision(job: TrainingJob) -> Decided:
    precision, decided = job.strategy.precision, Decided()
    if precision != "fp32":
        decided[f"{precision}.enabled"] = (True, "strategy.precision")
    if job.strategy.states == "bf16":
        decided["bf16.bf16_master_weights_and_grads"] = (True, "strategy.states")
        decided["bf16.bf16_optimizer_states"] = (True, "strategy.states")
    return decided


def _merge(base: dict[str, Any], raw: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in raw.items():
        inner = merged.get(key)
        merged[key] = _merge(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


def inference_config(job: InferenceJob, world_size: int) -> dict[str, Any]:
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


def swap_folder(job: InferenceJob | TrainingJob) -> str:
    """Where a run's weights and states wait on a fast disk: in a folder of its own, which it removes."""
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
    """The configuration with what its weights' sizes decide, where it does not say so itself.

    A weight is dropped as soon as its module has run: DeepSpeed's defaults keep a billion values gathered, and with
    them smaller models whole. A GPU fetches the next layer while one computes, from pinned memory; on a processor
    there is nothing to overlap. A swap buffer holds one parameter's share of a rank; DeepSpeed's own five take 2 GB.
    """
    zero: dict[str, Any] = {
        "stage3_max_reuse_distance": 0,
        "stage3_prefetch_bucket_size": shapes.layer if gpu else 0,
        "stage3_max_live_parameters": 2 * shapes.layer + shapes.largest,
        **config["zero_optimization"],
    }
    if "offload_param" in zero:
        place: dict[str, Any] = {"pin_memory": gpu}
        if zero["offload_param"]["device"] == "nvme":
            share = -(-shapes.largest // world_size)
            place |= {"buffer_size": share, "buffer_count": shapes.together + 2}
        zero["offload_param"] = {**place, **zero["offload_param"]}
    return {**config, "zero_optimization": zero}


def fitted(config: Mapping[str, Any], shapes: Shapes, world_size: int, *, gpu: bool) -> dict[str, Any]:
    """The configuration of a training job that offloads, with what its model's sizes decide.

    The optimizer steps through a disk's state a group at a time: a group is about a layer, where DeepSpeed's default of
    a billion values would hold smaller models' state whole. Weights on a disk have no second place in host memory.
    """
    zero: dict[str, Any] = dict(config["zero_optimization"])
    if "offload_param" in zero:
        zero = streamed(config, shapes, world_size, gpu=gpu)["zero_optimization"]
        if zero["offload_param"]["device"] == "nvme":
            zero["offload_param"] = {"max_in_cpu": 0, **zero["offload_param"]}
    if "offload_optimizer" in zero:
        zero["offload_optimizer"] = {"pin_memory": gpu, **zero["offload_optimizer"]}
    if "nvme" in (zero.get(section, {}).get("device") for section in ("offload_param", "offload_optimizer")):
        zero = {"sub_group_size": -(-max(shapes.layer, shapes.largest) // world_size), **zero}
    return {**config, "zero_optimization": zero}
