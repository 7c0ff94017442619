"""A training job: continued pre-training, supervised fine-tuning or preference optimisation."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from velocity.config.adapter import AdapterConfig
from velocity.config.combinations import clashes
from velocity.config.job import Job, auto_to_mapping
from velocity.config.objective import DPOConfig, KTOConfig, PreferenceConfig
from velocity.config.sections import (
    BatchConfig,
    CheckpointConfig,
    DataConfig,
    DurationConfig,
    OptimizerConfig,
    Tracker,
    one_to_list,
)
from velocity.config.strategy import StrategyConfig

# What Velocity decides itself, and the job-file key that says it.
DECIDED = {
    "train_batch_size": "batch",
    "train_micro_batch_size_per_gpu": "batch.micro",
    "gradient_accumulation_steps": "batch",
    "managed_gradient_accumulation": "batch",
    "gradient_clipping": "optimizer.gradient_clipping",
    "optimizer": "optimizer",
    "scheduler": "optimizer.schedule",
    "bf16": "strategy.precision",
    "bfloat16": "strategy.precision",
    "amp": "strategy.precision",
    "fp16": "strategy.precision",
    "torch_autocast": "strategy.precision",
    "zero_optimization.stage": "strategy.zero",
}


class TrainingJob(Job):
    """A training job: continued pre-training, supervised fine-tuning or preference optimisation."""

    FREE: ClassVar = ("output", "duration", "strategy", "checkpoint", "tracking", "launch", "deepspeed", "batch.micro",
                      "data.audit", "data.cache", "data.processes", "data.eval_every",
                      "preference.reference")  # fmt: skip

    task: Literal["pretrain", "sft", "preference"] = Field(
        description="pretrain trains on every token, sft on the assistant's turns, preference on answers compared"
    )
    data: DataConfig
    batch: BatchConfig
    optimizer: OptimizerConfig
    duration: DurationConfig
    strategy: Annotated[
        StrategyConfig, BeforeValidator(auto_to_mapping, json_schema_input_type=Literal["auto"] | StrategyConfig)
    ] = StrategyConfig()
    adapter: AdapterConfig | None = Field(None, description="left out: all parameters are trained")
    preference: PreferenceConfig | None = Field(None, description="task preference: DPO if left out")
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: Annotated[
        tuple[Tracker, ...], BeforeValidator(one_to_list, json_schema_input_type=Tracker | list[Tracker])
    ] = ()
    deepspeed: dict[str, Any] = Field({}, description="raw DeepSpeed settings, passed through")

    @model_validator(mode="before")
    @classmethod
    def _preference_is_dpo(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("task") == "preference" and data.get("preference") is None:
            return {**data, "preference": {}}
        return data

    @model_validator(mode="after")
    def _preference_counts_pairs(self) -> TrainingJob:
        if self.task != "preference":
            if self.preference is not None:
                raise ValueError(f"preference does not go with task: {self.task}; use task: preference")
        elif self.batch.tokens is not None:
            raise ValueError("batch.tokens does not go with task: preference; count pairs, e.g. batch: {rows: 32}")
        elif self.duration.tokens is not None:
            raise ValueError("duration.tokens does not go with task: preference; use epochs or steps")
        return self

    @model_validator(mode="after")
    def _the_best_is_known(self) -> TrainingJob:
        best = self.checkpoint.best
        if best is not None and best not in self.data.eval:
            sets = ", ".join(self.data.eval) or "and there is none"
            raise ValueError(f"checkpoint.best={best} is no evaluation set; use one of data.eval: {sets}")
        return self

    @model_validator(mode="after")
    def _settings_go_together(self) -> TrainingJob:
        for clash in clashes(self):
            raise ValueError(clash)
        return self

    def ends_like(self, other: Job) -> bool:
        """True where both train for as long; in how many attempts does not matter."""
        return isinstance(other, TrainingJob) and other.duration.end == self.duration.end

    @property
    def row_tokens(self) -> int:
        """The most tokens of a row: a pair is two sequences."""
        pairs = self.task == "preference" and not isinstance(self.preference, KTOConfig)
        return self.data.sequence_length * (2 if pairs else 1)

    @property
    def reference(self) -> Literal["cached", "live"] | None:
        """Where the reference's log-probabilities come from; None for an objective that has no reference."""
        return self.preference.reference if isinstance(self.preference, (DPOConfig, KTOConfig)) else None

    @model_validator(mode="after")
    def _batch_holds_rows(self) -> TrainingJob:
        tokens, length = self.batch.tokens, self.data.sequence_length
        if tokens is not None and (tokens % length if self.data.packing else tokens < length):
            near = max(tokens // length, 1) * length
            what = "not a multiple of" if self.data.packing else "less than"
            fix = f"use {near} or {near + length}"
            raise ValueError(f"batch.tokens={tokens} is {what} data.sequence_length={length}; {fix}")
        return self

    @model_validator(mode="after")
    def _deepspeed_leaves_what_is_decided(self) -> TrainingJob:
        for name, key in DECIDED.items():
            section, _, leaf = name.partition(".")
            if section not in self.deepspeed:
                continue
            value = self.deepspeed[section]
            if not leaf or not isinstance(value, dict) or leaf in value:
                raise ValueError(f"deepspeed.{name} is decided by Velocity; set {key} instead")
        return self
