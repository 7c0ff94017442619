"""The DeepSpeed configuration of a job: a pure function of the job and the number of ranks."""

from __future__ import annotations

from typing import Any

from velocity.config.job import Job


def deepspeed_config(job: Job, world_size: int) -> dict[str, Any]:
    """All that deepspeed.initialize is told, with the raw settings of `deepspeed:` merged in."""
    strategy, micro = job.strategy, job.batch.micro
    assert isinstance(micro, int), "the planner resolves batch.micro"
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": 1,
        "train_batch_size": micro * world_size,
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


def _zero(job: Job) -> dict[str, Any]:
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
