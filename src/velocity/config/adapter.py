"""Which few parameters are trained beside a frozen model. Left out of a job, all of the model's are."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt

from velocity.config.base import Config

ALL_LINEAR = "all-linear"


def _names(value: Any) -> Any:
    if isinstance(value, str) and value:
        return value if value == ALL_LINEAR else (value,)
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(name, str) and name for name in value):
        raise ValueError("names no layers; give all-linear, or the ends of their names, e.g. [q_proj, v_proj]")
    if ALL_LINEAR in value:
        raise ValueError("all-linear stands for all of them; give it alone: targets: all-linear")
    return tuple(value)


class AdapterConfig(Config):
    """LoRA (arXiv 2106.09685), rank-stabilised LoRA (2312.03732) or DoRA (2402.09353), by peft."""

    kind: Literal["lora", "rslora", "dora"] = "lora"
    rank: PositiveInt = Field(16, description="width of the update's two factors")
    alpha: PositiveInt = Field(32, description="the update is scaled by alpha / rank; rslora: by alpha / sqrt(rank)")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="share of the update's input that is dropped in training"
    )
    targets: Annotated[
        Literal["all-linear"] | tuple[str, ...],
        BeforeValidator(_names, json_schema_input_type=str | Annotated[list[str], Field(min_length=1)]),
    ] = Field("all-linear", description="all linear layers but the head, or layers by the end of their names")
    bits: Literal[4, 8] | None = Field(None, description="QLoRA (arXiv 2305.14314): the frozen weights in 4 or 8 bit")
