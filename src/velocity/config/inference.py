"""What jobs that run a model share: how it answers, how much at once, and on which engine."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, model_validator

from velocity.config.base import Config
from velocity.config.job import Job, auto_to_mapping
from velocity.config.sections import one_to_list
from velocity.config.strategy import InferenceStrategyConfig

Texts = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    BeforeValidator(one_to_list, json_schema_input_type=str | list[str]),
]


class GenerationConfig(Config):
    """How completions are made of prompts."""

    engine: Literal["auto", "transformers", "deepspeed", "zero"] = Field(
        "auto", description="a whole model a rank, weights split over ranks, or weights streamed from memory or disk"
    )
    max_new_tokens: PositiveInt = Field(256, description="of a completion")
    completions: PositiveInt = Field(1, description="of each prompt")
    temperature: Annotated[float, Field(ge=0)] = Field(0.0, description="0: always the most likely token")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="sample from the most likely tokens that hold this share: arXiv 1904.09751"
    )
    top_k: Annotated[int, Field(ge=0)] = Field(0, description="sample from so many of the most likely tokens; 0: all")
    min_p: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="sample from tokens at least this share as likely as the likeliest: arXiv 2407.01082"
    )
    repetition_penalty: PositiveFloat = Field(
        1.0, description="on tokens that prompt or completion has already; 1: none: arXiv 1909.05858"
    )
    beams: PositiveInt = Field(1, description="beam search with so many")
    stop: Texts = Field((), description="texts that end a completion, and are no part of it")
    end_tokens: Texts = Field((), description="tokens that end a completion besides the model's own")
    logprobs: bool = Field(False, description="write the log-probability of each token of a completion")
    format: Literal["jsonl", "parquet"] = Field("jsonl", description="of the file of completions")

    @model_validator(mode="after")
    def _greedy_has_nothing_to_choose(self) -> GenerationConfig:
        if self.temperature > 0:
            return self
        for name in ("top_p", "top_k", "min_p"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} does not go with temperature: 0; set a temperature above 0")
        if self.completions > self.beams:
            what = f"completions={self.completions} would all be alike at temperature: 0"
            raise ValueError(f"{what}; set a temperature above 0")
        return self

    @model_validator(mode="after")
    def _beams_stand_alone(self) -> GenerationConfig:
        if self.beams == 1:
            return self
        for name in ("temperature", "stop", "logprobs"):
            if getattr(self, name):
                raise ValueError(f"beams={self.beams} does not go with {name}; leave one of them out")
        return self


class RowsConfig(Config):
    """How much a rank computes at once."""

    tokens: PositiveInt | Literal["auto"] = Field(
        "auto", description="places for tokens in the cache of keys and values, prompts and completions together"
    )
    rows: PositiveInt | Literal["auto"] = Field("auto", description="completions that grow at the same time")


class InferenceJob(Job):
    """A job that runs a model, and does not train it."""

    FREE: ClassVar = ("output", "strategy", "batch", "launch", "checkpoint", "generation.engine", "data.cache")

    generation: GenerationConfig = GenerationConfig()
    batch: RowsConfig = RowsConfig()
    strategy: Annotated[
        InferenceStrategyConfig,
        BeforeValidator(auto_to_mapping, json_schema_input_type=Literal["auto"] | InferenceStrategyConfig),
    ] = InferenceStrategyConfig()

    @property
    def prompt_tokens(self) -> int | None:
        """The most tokens of a prompt; None where the job says nothing of it."""
        return None

    @model_validator(mode="after")
    def _strategy_is_the_engines(self) -> InferenceJob:
        engine, strategy = self.generation.engine, self.strategy
        if strategy.kernel_injection and engine != "deepspeed":
            raise ValueError(f"strategy.kernel_injection does not go with engine: {engine}; use engine: deepspeed")
        if strategy.tensor not in ("auto", 1) and engine not in ("auto", "deepspeed"):
            what = f"strategy.tensor={strategy.tensor} does not go with generation.engine: {engine}"
            raise ValueError(f"{what}; use engine: deepspeed")
        if strategy.offload.parameters not in ("auto", "none") and engine not in ("auto", "zero"):
            what = f"strategy.offload.parameters={strategy.offload.parameters} does not go with engine: {engine}"
            raise ValueError(f"{what}; use engine: zero")
        return self


AnyInference = TypeVar("AnyInference", bound=InferenceJob)


def with_engine(job: AnyInference, engine: Any, **strategy: Any) -> AnyInference:
    """The job with its engine and its strategy decided."""
    return job.model_copy(
        update={
            "generation": job.generation.model_copy(update={"engine": engine}),
            "strategy": job.strategy.model_copy(update=strategy),
        }
    )
