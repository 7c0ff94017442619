"""A job that measures a model on named sets: how likely a text is, which answer it takes, what it says itself."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, PositiveInt, Tag, field_validator, model_validator

from velocity.config.base import Config
from velocity.config.inference import InferenceJob, Texts
from velocity.config.retrieval import RetrievalConfig
from velocity.config.sections import JobData, PlaceConfig, path_to_mapping

Score = Literal["exact_match", "f1", "rouge_l", "chrf"]
NAME = re.compile(r"[\w.-]+")  # of a set: its rows lie in a file of that name


class PerplexityConfig(PlaceConfig):
    """How likely each text, or each of the assistant's turns, is."""

    kind: Literal["perplexity"] = "perplexity"


class ChoicesConfig(PlaceConfig):
    """Which of several answers the model finds likeliest: rows with a prompt, choices, and the one that is right."""

    kind: Literal["choices"] = "choices"


class PairsConfig(PlaceConfig):
    """Whether the chosen answer of a pair is likelier than the rejected one."""

    kind: Literal["preference"] = "preference"


class AnswersConfig(PlaceConfig):
    """What the model answers by itself, against an answer that is known: prompts with a completion, or chats."""

    kind: Literal["answers"] = "answers"
    metrics: Annotated[
        tuple[Score, ...],
        BeforeValidator(lambda value: [value] if isinstance(value, str) else value,
                        json_schema_input_type=Score | list[Score]),
    ] = Field((), description="each a number from 0 to 1 a row")  # fmt: skip
    pattern: str | None = Field(
        None, description="a regular expression: what it finds in the answer is what it finds in the one that is known"
    )
    function: str | None = Field(
        None, description="FILE.py:NAME, called with the answer, the known one and the row; it returns a number"
    )

    @field_validator("pattern")
    @classmethod
    def _is_a_pattern(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"not a regular expression: {error}") from None
        return pattern

    @field_validator("function")
    @classmethod
    def _names_a_function(cls, function: str | None) -> str | None:
        if function is not None and not re.fullmatch(r".+\.py:[A-Za-z_]\w*", function):
            raise ValueError("a function is named as FILE.py:NAME, e.g. scores/mine.py:score")
        return function

    @model_validator(mode="after")
    def _something_is_scored(self) -> AnswersConfig:
        if not (self.metrics or self.pattern or self.function):
            raise ValueError("nothing scores these answers; give metrics: [exact_match, f1], a pattern, or a function")
        return self


def _kind(value: Any) -> Any:
    return value.get("kind", "perplexity") if isinstance(value, dict) else getattr(value, "kind", None)


AnySet = PerplexityConfig | ChoicesConfig | PairsConfig | AnswersConfig
EvalSet = Annotated[
    Annotated[PerplexityConfig, Tag("perplexity")]
    | Annotated[ChoicesConfig, Tag("choices")]
    | Annotated[PairsConfig, Tag("preference")]
    | Annotated[AnswersConfig, Tag("answers")],
    Discriminator(
        _kind,
        custom_error_type="kind",
        custom_error_message="unknown kind of set; kind: perplexity, choices, preference or answers",
    ),
    BeforeValidator(path_to_mapping, json_schema_input_type=str | AnySet),
]


class EvaluateDataConfig(JobData):
    """What is measured on."""

    eval: dict[str, EvalSet] = Field({}, description="sets by name, each of one kind")
    sequence_length: Annotated[int, Field(ge=8)] = Field(
        1024, description="tokens of a window of text, and at most of a prompt with its longest answer"
    )
    on_long_chat: Literal["error", "cut", "skip"] = Field(
        "error", description="what to do with a chat, or a prompt with its answers, that is too long"
    )

    @field_validator("eval")
    @classmethod
    def _names_are_files(cls, sets: dict[str, Any]) -> dict[str, Any]:
        for name in sets:
            if not NAME.fullmatch(name) or name.startswith((".", "benchmark-")):
                raise ValueError(f"{name!r} cannot name a set; use letters, digits, dots, dashes, underscores")
        return sets


class BenchmarksConfig(Config):
    """Tasks of lm-eval, run on our engines."""

    tasks: Texts = Field(description="names of lm-eval's tasks, or of those in the folder")
    folder: str | None = Field(None, description="a folder of task files (YAML) of your own")
    limit: PositiveInt | None = Field(None, description="rows of each task; left out: all")
    fewshot: Annotated[int, Field(ge=0)] | None = Field(None, description="examples before a row; left out: the task's")
    chat: bool = Field(False, description="put each row into the model's chat template")

    @field_validator("tasks")
    @classmethod
    def _some(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        if not tasks:
            raise ValueError("name at least one task, e.g. tasks: [arc_easy]")
        return tasks


class EvaluateJob(InferenceJob):
    """Measures a model, row by row; what it said of each row is kept."""

    FREE: ClassVar = (*InferenceJob.FREE,)

    task: Literal["evaluate"] = Field(description="evaluate measures a model on named sets and benchmarks")
    data: EvaluateDataConfig = EvaluateDataConfig()
    retrieval: RetrievalConfig | None = Field(
        None, description="passages of a corpus stand before each question; left out: none"
    )
    benchmarks: BenchmarksConfig | None = Field(None, description="lm-eval's tasks; left out: none")

    @model_validator(mode="after")
    def _something_is_measured(self) -> EvaluateJob:
        if not self.data.eval and self.benchmarks is None:
            raise ValueError("nothing is measured; give data.eval: {unseen: texts.jsonl}, or benchmarks")
        return self

    @model_validator(mode="after")
    def _one_plain_answer(self) -> EvaluateJob:
        for name, plain in (("completions", 1), ("logprobs", False), ("format", "jsonl"), ("beams", 1)):
            if (value := getattr(self.generation, name)) != plain:
                raise ValueError(f"generation.{name}={value} does not go with task: evaluate; leave it out")
        if self.strategy.kernel_injection:
            raise ValueError("strategy.kernel_injection does not go with task: evaluate; leave it out")
        return self

    @property
    def answers(self) -> bool:
        """True where the model writes answers, and does not score texts alone."""
        return self.benchmarks is not None or any(one.kind == "answers" for one in self.data.eval.values())

    @property
    def prompt_tokens(self) -> int | None:
        """The most tokens of a prompt."""
        return self.data.sequence_length
