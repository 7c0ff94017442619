"""How the model is spread over the processes, and in which precision it computes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from velocity.config.base import Config


class StrategyConfig(Config):
    """`auto` leaves a choice to the planner, which says why in job.yaml."""

    zero: Literal["auto", 0, 1, 2, 3] = Field("auto", description="ZeRO stage: arXiv 1910.02054")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 where the hardware has it"
    )
    recompute: Literal["auto", "none", "layers"] = Field(
        "auto", description="activations of a layer kept or computed again"
    )

    @model_validator(mode="after")
    def _zero_0_is_fp32(self) -> StrategyConfig:
        if self.zero == 0 and self.precision in ("bf16", "fp16"):
            # measured: DeepSpeed's stage 0 in 16 bit is another optimizer, whose losses differ by more than rounding
            raise ValueError(f"zero: 0 does not go with precision: {self.precision}; use zero: 1, which costs no more")
        return self


class OffloadConfig(Config):
    """Where weights wait that the device has no room for."""

    parameters: Literal["auto", "none", "cpu", "nvme"] = Field("auto", description="host memory, or a fast disk")
    path: str | None = Field(None, description="folder on the fast disk, where parameters: nvme")

    @model_validator(mode="after")
    def _nvme_has_a_folder(self) -> OffloadConfig:
        if (self.parameters == "nvme") != (self.path is not None):
            raise ValueError("strategy.offload takes parameters: nvme and path together; e.g. path: /nvme")
        return self


class InferenceStrategyConfig(Config):
    """How the model of a generate job is spread over the processes, and in which precision it computes."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 where the hardware has it"
    )
    tensor: PositiveInt | Literal["auto"] = Field(
        "auto", description="processes that share one model's weights, each with a part of every layer"
    )
    offload: OffloadConfig = OffloadConfig()
    kernel_injection: bool = Field(
        False, description="engine deepspeed on a GPU: DeepSpeed's fused kernels, if they compute what the model is"
    )
