"""What a preference job is trained towards: one class a loss, chosen by `kind`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, PositiveFloat, Tag, model_validator

from velocity.config.base import Config

KIND_IS_SAID = ConfigDict(json_schema_extra={"required": ["kind"]})  # without kind it is DPO
Reference = Literal["cached", "live"]
REFERENCE = "cached: scored once, before training; live: a second frozen model, or the model without its adapter"


class DPOConfig(Config):
    """Direct preference optimisation and its variants: arXiv 2305.18290."""

    kind: Literal["dpo"] = "dpo"
    beta: PositiveFloat = Field(0.1, description="how strongly the policy is held to the reference")
    loss: Literal["sigmoid", "robust", "hinge", "ipo"] = Field("sigmoid", description="the form of the loss")
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.0, description="share of pairs believed to be the wrong way round: conservative DPO, or robust"
    )
    sft_weight: Annotated[float, Field(ge=0)] = Field(0.0, description="adds so much of the chosen answers' SFT loss")
    reference: Reference = Field("cached", description=REFERENCE)

    @model_validator(mode="after")
    def _smoothing_fits(self) -> DPOConfig:
        if self.loss in ("hinge", "ipo") and self.label_smoothing:
            raise ValueError(f"label_smoothing does not go with loss: {self.loss}; use loss: sigmoid or robust")
        if self.loss == "robust" and not self.label_smoothing:
            raise ValueError("loss: robust needs the share of swapped pairs; set label_smoothing, e.g. 0.1")
        return self


class ORPOConfig(Config):
    """Odds ratio preference optimisation: arXiv 2403.07691."""

    model_config = KIND_IS_SAID

    kind: Literal["orpo"] = "orpo"
    beta: PositiveFloat = Field(0.1, description="weight of the odds ratio beside the SFT loss (the paper's lambda)")


class SimPOConfig(Config):
    """Simple preference optimisation: arXiv 2405.14734."""

    model_config = KIND_IS_SAID

    kind: Literal["simpo"] = "simpo"
    beta: PositiveFloat = Field(2.0, description="scale of the mean log-probability of a token")
    gamma: Annotated[float, Field(ge=0)] = Field(1.0, description="the margin that is asked for")


class CPOConfig(Config):
    """Contrastive preference optimisation: arXiv 2401.08417."""

    model_config = KIND_IS_SAID

    kind: Literal["cpo"] = "cpo"
    beta: PositiveFloat = Field(0.1, description="scale of the difference of the log-probabilities")
    sft_weight: Annotated[float, Field(ge=0)] = Field(1.0, description="weight of the chosen answers' SFT loss")


class KTOConfig(Config):
    """Kahneman-Tversky optimisation, of single answers that are desirable or not: arXiv 2402.01306."""

    model_config = KIND_IS_SAID

    kind: Literal["kto"] = "kto"
    beta: PositiveFloat = Field(0.1, description="how strongly the policy is held to the reference")
    desirable_weight: PositiveFloat = Field(1.0, description="weight of a desirable answer's loss")
    undesirable_weight: PositiveFloat = Field(1.0, description="weight of an undesirable answer's loss")
    reference: Reference = Field("cached", description=REFERENCE)


KINDS = ("dpo", "orpo", "simpo", "cpo", "kto")


def _kind(value: Any) -> Any:
    return value.get("kind", "dpo") if isinstance(value, dict) else getattr(value, "kind", None)


PreferenceConfig = Annotated[
    Annotated[DPOConfig, Tag("dpo")]
    | Annotated[ORPOConfig, Tag("orpo")]
    | Annotated[SimPOConfig, Tag("simpo")]
    | Annotated[CPOConfig, Tag("cpo")]
    | Annotated[KTOConfig, Tag("kto")],
    Discriminator(
        _kind, custom_error_type="kind", custom_error_message=f"unknown objective; kind is one of {', '.join(KINDS)}"
    ),
]
