"""How the model is spread over the processes, and in which precision it computes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from velocity.config.base import Config

Degree = PositiveInt | Literal["auto"]
Place = Literal["auto", "none", "cpu", "nvme"]


class OffloadConfig(Config):
    """Where weights wait that the device has no room for."""

    parameters: Place = Field("auto", description="host memory, or a fast disk")
    path: str | None = Field(None, description="folder on the fast disk, where something is offloaded to nvme")

    @model_validator(mode="after")
    def _nvme_has_a_folder(self) -> OffloadConfig:
        if ("nvme" in self.places) != (self.path is not None):
            raise ValueError("strategy.offload takes nvme and path together; e.g. {parameters: nvme, path: /nvme}")
        return self

    @property
    def places(self) -> tuple[str, ...]:
        """Where each thing waits that can wait elsewhere."""
        return (self.parameters,)


class TrainingOffloadConfig(OffloadConfig):
    """Where weights, the optimizer's state and kept activations wait that the device has no room for."""

    optimizer: Place = Field("auto", description="the optimizer's state and its step: arXiv 2101.06840")
    ratio: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="share of the optimizer's state that goes to cpu; the rest stays on the device"
    )
    activations: Literal["none", "cpu"] = Field("none", description="what recompute: layers keeps of each layer")
    overlap: Literal["none", "superoffload"] = Field(
        "none", description="superoffload: the offloaded optimizer steps while the GPU computes"
    )

    @property
    def places(self) -> tuple[str, ...]:
        """Where weights and the optimizer's state wait."""
        return (self.parameters, self.optimizer)


class ZeroPlusPlusConfig(Config):
    """ZeRO++, which trades precision or memory for traffic between nodes: arXiv 2306.10209."""

    quantised_weights: bool = Field(False, description="weights are gathered in 8 bit (qwZ)")
    quantised_gradients: bool = Field(False, description="gradients are reduced in 4 bit (qgZ)")
    secondary: PositiveInt = Field(1, description="processes that share a second copy of the weights, one node's (hpZ)")


class StrategyConfig(Config):
    """`auto` leaves a choice to the planner, which says why in job.yaml."""

    zero: Literal["auto", 0, 1, 2, 3] = Field("auto", description="ZeRO stage: arXiv 1910.02054")
    offload: TrainingOffloadConfig = TrainingOffloadConfig()
    tensor: Degree = Field("auto", description="processes that share each layer's matrices: arXiv 1909.08053")
    pipeline: Degree = Field("auto", description="stages of consecutive layers, a process each: arXiv 1811.06965")
    sequence: Degree = Field("auto", description="processes that share each row's tokens: arXiv 2309.14509")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 where the hardware has it"
    )
    states: Literal["fp32", "bf16"] = Field(
        "fp32", description="master weights, gradients and the optimizer's state; bf16 takes half, and rounds"
    )
    recompute: Literal["auto", "none", "layers"] = Field(
        "auto", description="activations of a layer kept or computed again"
    )
    compile: Literal["none", "layers", "deepcompile"] = Field(
        "none", description="torch.compile of each layer, or DeepSpeed's compiler of the whole step"
    )
    zero_plus_plus: ZeroPlusPlusConfig = ZeroPlusPlusConfig()

    @property
    def axes(self) -> tuple[str, ...]:
        """The degrees above 1, in words."""
        degrees = {"tensor": self.tensor, "pipeline": self.pipeline, "sequence": self.sequence}
        return tuple(f"{name} {degree}" for name, degree in degrees.items() if degree not in (1, "auto"))

    @property
    def away(self) -> tuple[str, ...]:
        """What waits elsewhere than on the device, in words."""
        places = {"optimizer": self.offload.optimizer, "parameters": self.offload.parameters}
        return tuple(f"{name} on {place}" for name, place in places.items() if place not in ("none", "auto"))

    def describe(self) -> str:
        """The strategy in a few words, for messages and tables."""
        recomputed = ("layers recomputed",) if self.recompute == "layers" else ()
        return ", ".join((f"ZeRO {self.zero}", str(self.precision), *self.axes, *self.away, *recomputed))


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
