"""The sections of a job file that every training task shares, except the strategy. Pure values with their limits."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PositiveFloat,
    PositiveInt,
    Tag,
    field_validator,
    model_validator,
)

from velocity.config.audit import AuditConfig
from velocity.config.base import Config

Format = Literal["text", "chat", "prompt_completion", "preference", "feedback"]
Attention = Literal["auto", "varlen", "sdpa", "eager", "flash_attention_2"]
Tracker = Literal["tensorboard", "wandb", "mlflow"]
TIME = re.compile("".join(rf"(?:(\d+(?:\.\d+)?){unit})?" for unit in "dhms"))
UNITS_SECONDS = (86_400, 3_600, 60, 1)


def path_to_mapping(value: Any) -> Any:
    """A bare path stands for a mapping with that path."""
    return {"path": value} if isinstance(value, str) else value


def one_to_list(value: Any) -> Any:
    """A single value stands for a list of one."""
    return [value] if isinstance(value, (str, dict)) else value


def _one_to_named(value: Any) -> Any:
    """One evaluation source, or a list, is the set named `eval`."""
    if isinstance(value, (str, list)) or (isinstance(value, dict) and "path" in value):
        return {"eval": value}
    return value


def without_secret(address: str) -> str:
    """The address; ValueError where it holds a user or password."""
    if "@" in urlsplit(address).netloc:
        # the job file is copied into the run folder, the model card and the trackers
        raise ValueError("an address must not hold a user or password; give them in the environment")
    return address


class ModelConfig(Config):
    """Which model to start from."""

    path: str = Field(description="a folder, another job's output folder, or a hub id")
    revision: str | None = Field(None, description="branch, tag or commit of a hub model")
    attention: Attention = Field(
        "auto", description="auto takes variable-length attention, which isolates packed sequences"
    )
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model")


class PlaceConfig(Config):
    """Where records lie: files, globs, folders, any fsspec URL, or a Hugging Face dataset."""

    path: str = Field(description="file, glob, folder, URL, dataset saved to disk, or a dataset's hub id")
    format: Format | None = Field(None, description="recognised by the fields where it is left out")
    fields: dict[str, str] = Field({}, description="the name Velocity knows: the name in the data, e.g. {text: body}")
    split: str = Field("train", description="split of a Hugging Face dataset")
    subset: str | None = Field(None, description="configuration of a dataset on the hub that has several")

    @field_validator("path")
    @classmethod
    def _without_secret(cls, path: str) -> str:
        return without_secret(path)


class SourceConfig(PlaceConfig):
    """What is trained or evaluated on, and how much of it."""

    weight: PositiveFloat = Field(1.0, description="how many times an epoch sees each record; 0.5: half of them")


# What may stand in a file in place of the full form is named for the JSON Schema: editors are not to mark it as wrong.
Source = Annotated[SourceConfig, BeforeValidator(path_to_mapping, json_schema_input_type=str | SourceConfig)]
OneOrMore = str | SourceConfig | list[str | SourceConfig]
Sources = Annotated[
    tuple[Source, ...], BeforeValidator(one_to_list, json_schema_input_type=OneOrMore), Field(min_length=1)
]


class JobData(Config):
    """What the data section of every job has."""

    on_bad_record: Literal["error", "skip"] = Field("error", description="skipped ones go to rejected.jsonl")
    chat_template: str | None = Field(None, description="a Jinja file to use in place of the tokenizer's own template")
    cache: str = Field("~/.cache/velocity", description="folder of the tokenised data, shared by all jobs")


class DataConfig(JobData):
    """What to train and evaluate on, and how records become rows."""

    train: Sources = Field(description="one source or a list")
    eval: Annotated[
        dict[str, Sources], BeforeValidator(_one_to_named, json_schema_input_type=OneOrMore | dict[str, OneOrMore])
    ] = Field({}, description="one, or several by name (but not train: that is the training set)")
    eval_every: PositiveInt | None = Field(None, description="steps between evaluations; five times a run if left out")
    sequence_length: Annotated[int, Field(ge=8)] = Field(
        1024, description="tokens of a row, and at most of a sequence; a row of pairs holds twice as many"
    )
    packing: bool = Field(True, description="several sequences a row, isolated from each other")
    on_long_chat: Literal["error", "cut", "skip"] = Field(
        "error", description="what to do with a chat, or a prompt with its answers, that is too long"
    )
    processes: PositiveInt | None = Field(None, description="tokenising processes; one a core if left out")
    audit: AuditConfig = Field(AuditConfig(), description="what is looked for in the texts, before money is spent")

    @field_validator("eval")
    @classmethod
    def _train_is_another_set(cls, sets: dict[str, Any]) -> dict[str, Any]:
        if "train" in sets:
            raise ValueError("an evaluation set cannot be named train; give it another name")
        return sets


class BatchConfig(Config):
    """The global batch: what one optimizer step sees, whatever the number of ranks."""

    tokens: PositiveInt | None = Field(
        None, description="in tokens: packed rows of sequence_length, or whole sequences"
    )
    rows: PositiveInt | None = Field(
        None, description="in rows: bins, or sequences without packing; task preference: pairs, or KTO's answers"
    )
    micro: PositiveInt | Literal["auto"] = Field("auto", description="rows a rank computes at once")

    @model_validator(mode="after")
    def _one_size(self) -> BatchConfig:
        if (self.tokens is None) == (self.rows is None):
            raise ValueError("give the global batch once; either tokens: 131072 or rows: 64")
        return self


class ScheduleConfig(Config):
    """Fields of every optimizer that say how the learning rate moves."""

    learning_rate: PositiveFloat = Field(description="the peak")
    schedule: Literal["constant", "linear", "cosine", "wsd"] = Field("cosine", description="what follows the warmup")
    warmup: Annotated[float, Field(ge=0)] = Field(0.03, description="steps, or a share of the run if below 1")
    decay: Annotated[float, Field(gt=0, le=1)] = Field(0.1, description="share of the run that wsd decays over")
    final: Annotated[float, Field(ge=0, le=1)] = Field(0.0, description="last learning rate, as a share of the peak")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.1, description="on matrices; norms and biases have none")
    gradient_clipping: Annotated[float, Field(ge=0)] = Field(1.0, description="largest gradient norm; 0: no clipping")
    max_skipped: PositiveInt = Field(10, description="consecutive steps with non-finite gradients that end the run")


class AdamWConfig(ScheduleConfig):
    """AdamW: arXiv 1711.05101."""

    kind: Literal["adamw"] = "adamw"
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    epsilon: PositiveFloat = 1e-8


class SGDConfig(ScheduleConfig):
    """Stochastic gradient descent; its steps show a wrong gradient scale, which AdamW hides."""

    model_config = ConfigDict(json_schema_extra={"required": ["kind", "learning_rate"]})  # without kind it is AdamW

    kind: Literal["sgd"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0


class MuonConfig(ScheduleConfig):
    """Muon on the layers' matrices, AdamW on the rest: Jordan et al. 2024, kellerjordan.github.io/posts/muon."""

    model_config = ConfigDict(json_schema_extra={"required": ["kind", "learning_rate"]})

    kind: Literal["muon"] = "muon"
    gradient_clipping: Annotated[float, Field(ge=0)] = Field(
        0.0, description="largest gradient norm of what AdamW trains; with ZeRO 0 alone"
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    rest_learning_rate: PositiveFloat = Field(3e-4, description="the peak for embeddings, head, norms and biases")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    epsilon: PositiveFloat = 1e-8


class AdafactorConfig(ScheduleConfig):
    """Adafactor: arXiv 1804.04235; the second moment of a matrix as one row and one column."""

    model_config = ConfigDict(json_schema_extra={"required": ["kind", "learning_rate"]})

    kind: Literal["adafactor"] = "adafactor"


class AdamW8bitConfig(ScheduleConfig):
    """AdamW with its two moments in 8 bit, by bitsandbytes: arXiv 2110.02861."""

    model_config = ConfigDict(json_schema_extra={"required": ["kind", "learning_rate"]})

    kind: Literal["adamw_8bit"] = "adamw_8bit"
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    epsilon: PositiveFloat = 1e-8


class LionConfig(ScheduleConfig):
    """Lion, by bitsandbytes: arXiv 2302.06675; one moment, and a step of the same size in every direction."""

    model_config = ConfigDict(json_schema_extra={"required": ["kind", "learning_rate"]})

    kind: Literal["lion"] = "lion"
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.99)


def _kind(value: Any) -> Any:
    return value.get("kind", "adamw") if isinstance(value, dict) else getattr(value, "kind", None)


AnyOptimizer = AdamWConfig | SGDConfig | MuonConfig | AdafactorConfig | AdamW8bitConfig | LionConfig
OptimizerConfig = Annotated[
    Annotated[AdamWConfig, Tag("adamw")]
    | Annotated[SGDConfig, Tag("sgd")]
    | Annotated[MuonConfig, Tag("muon")]
    | Annotated[AdafactorConfig, Tag("adafactor")]
    | Annotated[AdamW8bitConfig, Tag("adamw_8bit")]
    | Annotated[LionConfig, Tag("lion")],
    Discriminator(
        _kind,
        custom_error_type="kind",
        custom_error_message="unknown optimizer; kind: adamw, adamw_8bit, lion, adafactor, muon or sgd",
    ),
]


def seconds_of(time: Any) -> float:
    """Of `90m`, `1h30m`, `2d`, or a number of seconds; ValueError where it is none of them."""
    seconds = 0.0
    if isinstance(time, str) and (found := TIME.fullmatch(time)):
        seconds = sum(float(part or 0) * unit for part, unit in zip(found.groups(), UNITS_SECONDS, strict=True))
    elif isinstance(time, (int, float)) and not isinstance(time, bool):
        seconds = float(time)
    if not 0 < seconds < math.inf:
        raise ValueError("not a time; use days, hours, minutes, seconds as in 2d, 12h, 1h30m, 45s, or a number")
    return seconds


class DurationConfig(Config):
    """When training ends, and for how long it may go on before it saves and leaves the rest to another attempt."""

    epochs: PositiveFloat | None = None
    steps: PositiveInt | None = None
    tokens: PositiveInt | None = None
    wall_clock: float | str | None = Field(
        None, description="time of an attempt, such as 90m, 1h30m, 2d, or seconds: it saves before, and exits with 75"
    )

    @property
    def wall_clock_seconds(self) -> float | None:
        """How long one attempt may take from the start of its command to its end; None: as long as it likes."""
        return None if self.wall_clock is None else seconds_of(self.wall_clock)

    @property
    def end(self) -> tuple[float | None, int | None, int | None]:
        """What decides the run's length, however many attempts it takes."""
        return self.epochs, self.steps, self.tokens

    @field_validator("wall_clock", mode="before")
    @classmethod
    def _is_a_time(cls, value: Any) -> Any:
        if value is not None:
            seconds_of(value)
        return value

    @model_validator(mode="after")
    def _one_end(self) -> DurationConfig:
        if sum(end is not None for end in self.end) != 1:
            raise ValueError("give one end of the training; epochs: 2, or steps: 500, or tokens: 1000000")
        return self


class MirrorConfig(Config):
    """What machines that share no disk, or that vanish, go on from."""

    mirror: str | None = Field(
        None, description="where checkpoints, finished rows and results are copied to: a folder, or an s3, gs or az URL"
    )

    @field_validator("mirror")
    @classmethod
    def _is_a_mirror(cls, mirror: str | None) -> str | None:
        if mirror is not None and "://" in mirror:
            if not re.match(r"(s3|gs|az)://[^/?]+[^?]*$", mirror):
                raise ValueError("a mirror is a folder, or an address such as s3://bucket/run, gs://… or az://…")
            without_secret(mirror)
        return mirror


class CheckpointConfig(MirrorConfig):
    """When to save what a killed run goes on from."""

    every: PositiveInt = Field(200, description="steps between checkpoints")
    keep: PositiveInt = Field(3, description="how many of the newest to keep")
    keep_every: PositiveInt | None = Field(None, description="keep those whose step is a multiple of it for good, too")
    best: str | None = Field(None, description="the evaluation set by whose loss the best one is kept, too")
    background: bool | Literal["auto"] = Field(
        "auto", description="write while training goes on, from a copy in host memory; auto: where that has room"
    )
