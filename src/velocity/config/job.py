"""The job: all a user can set, in one typed value. The only place where a default lives."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from velocity.config.adapter import AdapterConfig
from velocity.config.base import Config, Mark, apply_override, read_yaml, validate
from velocity.config.launch import LocalConfig
from velocity.config.objective import DPOConfig, KTOConfig, PreferenceConfig
from velocity.config.sections import (
    BatchConfig,
    CheckpointConfig,
    DataConfig,
    DurationConfig,
    ModelConfig,
    OptimizerConfig,
    Tracker,
    one_to_list,
    path_to_mapping,
)
from velocity.config.strategy import StrategyConfig
from velocity.errors import UserError

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


def _auto_to_mapping(value: Any) -> Any:
    return {} if value == "auto" else value


class Job(Config):
    """A training job: continued pre-training, supervised fine-tuning or preference optimisation."""

    task: Literal["pretrain", "sft", "preference"] = Field(
        description="pretrain trains on every token, sft on the assistant's turns, preference on answers compared"
    )
    model: Annotated[ModelConfig, BeforeValidator(path_to_mapping, json_schema_input_type=str | ModelConfig)]
    output: str = Field(description="the run folder; it belongs to this job")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    data: DataConfig
    batch: BatchConfig
    optimizer: OptimizerConfig
    duration: DurationConfig
    strategy: Annotated[
        StrategyConfig, BeforeValidator(_auto_to_mapping, json_schema_input_type=Literal["auto"] | StrategyConfig)
    ] = StrategyConfig()
    adapter: AdapterConfig | None = Field(None, description="left out: all parameters are trained")
    preference: PreferenceConfig | None = Field(None, description="task preference: DPO if left out")
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: Annotated[
        tuple[Tracker, ...], BeforeValidator(one_to_list, json_schema_input_type=Tracker | list[Tracker])
    ] = ()
    launch: LocalConfig = LocalConfig()
    deepspeed: dict[str, Any] = Field({}, description="raw DeepSpeed settings, passed through")

    @model_validator(mode="before")
    @classmethod
    def _preference_is_dpo(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("task") == "preference" and data.get("preference") is None:
            return {**data, "preference": {}}
        return data

    @model_validator(mode="after")
    def _preference_counts_pairs(self) -> Job:
        if self.task != "preference":
            if self.preference is not None:
                raise ValueError(f"preference does not go with task: {self.task}; use task: preference")
        elif self.batch.tokens is not None:
            raise ValueError("batch.tokens does not go with task: preference; count pairs, e.g. batch: {rows: 32}")
        elif self.duration.tokens is not None:
            raise ValueError("duration.tokens does not go with task: preference; use epochs or steps")
        return self

    @model_validator(mode="after")
    def _quantised_weights_stay_whole(self) -> Job:
        if self.adapter and self.adapter.bits and self.strategy.zero == 3:
            raise ValueError("strategy.zero=3 does not go with adapter.bits: quantised weights are not split; use 2")
        return self

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
    def _batch_holds_rows(self) -> Job:
        tokens, length = self.batch.tokens, self.data.sequence_length
        if tokens is not None and (tokens % length if self.data.packing else tokens < length):
            near = max(tokens // length, 1) * length
            what = "not a multiple of" if self.data.packing else "less than"
            fix = f"use {near} or {near + length}"
            raise ValueError(f"batch.tokens={tokens} is {what} data.sequence_length={length}; {fix}")
        return self

    @model_validator(mode="after")
    def _deepspeed_leaves_what_is_decided(self) -> Job:
        for name, key in DECIDED.items():
            section, _, leaf = name.partition(".")
            if section not in self.deepspeed:
                continue
            value = self.deepspeed[section]
            if not leaf or not isinstance(value, dict) or leaf in value:
                raise ValueError(f"deepspeed.{name} is decided by Velocity; set {key} instead")
        return self


@dataclass(frozen=True)
class LoadedJob:
    """A job and, for each dotted key, where its value came from: file and line, command line, default, planner."""

    job: Job
    origins: dict[str, str]
    path: Path


@contextmanager
def placed(origins: Mapping[str, str]) -> Iterator[None]:
    """A UserError from inside that names a key of the job also says where that key was written."""
    try:
        yield
    except UserError as error:
        problems = [replace(problem, where=_place(problem.where, origins)) for problem in error.problems]
        raise UserError(problems) from None


def _place(key: str, origins: Mapping[str, str]) -> str:
    """`job.yaml:4 data.train` for a key that was written; what it is where it is no key, or has its default."""
    inside = (origins[name] for name in origins if name == key or name.startswith(f"{key}."))
    written = next((origin for origin in inside if origin != "default" and not origin.startswith("planner")), None)
    return f"{written} {key}" if written else key


def load_job(path: Path, overrides: Sequence[str] = ()) -> LoadedJob:
    """The job of a YAML file with `key.path=value` overrides; UserError with every problem's place."""
    data, mark = read_yaml(path)
    for text in overrides:
        apply_override(data, mark, text)
    job = validate(Job, data, mark)
    return LoadedJob(job, {key: _origin(job, key, mark) for key in flatten(job.model_dump())}, path)


def _origin(job: Job, key: str, mark: Mark) -> str:
    node: Any = job
    for part in key.split("."):
        if isinstance(node, BaseModel) and part not in node.model_fields_set:
            return "default"
        node = getattr(node, part, None) if isinstance(node, BaseModel) else _item(node, part)
    return mark.find([int(part) if part.isdigit() else part for part in key.split(".")]).where


def _item(node: Any, part: str) -> Any:
    if isinstance(node, (list, tuple)):
        node = {str(number): item for number, item in enumerate(node)}
    return node.get(part) if isinstance(node, dict) else None  # None: half of a name with a dot in it


def flatten(data: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key → value of the leaves of nested mappings and sequences."""
    if isinstance(data, dict) and data:
        items: Any = data.items()
    elif isinstance(data, (list, tuple)) and any(isinstance(item, dict) for item in data):
        items = enumerate(data)
    else:
        return {prefix: data}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def option_names() -> list[str]:
    """Every dotted option of a job file, sorted; a test holds the list, so that an option is added on purpose."""
    return sorted(set(_option_names(Job)))


def _option_names(kind: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(kind, type) and issubclass(kind, Config):
        for name, info in kind.model_fields.items():
            yield from _option_names(info.annotation, f"{prefix}.{name}" if prefix else name)
        return
    nested = [a for a in typing.get_args(kind) if a is not Ellipsis and _holds_config(a)]
    for member in nested:
        yield from _option_names(member, prefix)
    if not nested:
        yield prefix


def _holds_config(kind: Any) -> bool:
    if isinstance(kind, type):
        return issubclass(kind, Config)
    return any(_holds_config(member) for member in typing.get_args(kind))
