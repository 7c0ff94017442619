"""How the model is spread over the processes, and in which precision it computes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

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
