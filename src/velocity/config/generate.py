"""A job that runs a model over a whole data set: prompts in, completions out. No endpoint."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PositiveInt

from velocity.config.inference import InferenceJob
from velocity.config.sections import JobData, PlaceConfig, one_to_list, path_to_mapping


class PromptsConfig(PlaceConfig):
    """Where prompts come from: any source that training reads."""

    template: str | None = Field(
        None, description="Jinja over a row's fields that makes the prompt: What is {{ name }}?"
    )


Prompts = Annotated[PromptsConfig, BeforeValidator(path_to_mapping, json_schema_input_type=str | PromptsConfig)]


class PromptDataConfig(JobData):
    """What is answered."""

    prompts: Annotated[
        tuple[Prompts, ...],
        BeforeValidator(one_to_list, json_schema_input_type=str | PromptsConfig | list[str | PromptsConfig]),
        Field(min_length=1),
    ] = Field(description="one source or a list")
    max_prompt_tokens: PositiveInt | None = Field(
        None, description="left out: what the model's context leaves beside generation.max_new_tokens"
    )
    on_long_prompt: Literal["error", "cut", "skip"] = Field(
        "error", description="cut drops the prompt's beginning; skipped ones go to rejected.jsonl"
    )


class GenerateJob(InferenceJob):
    """Batch inference: every row of a data set gets its completions, exactly once."""

    task: Literal["generate"] = Field(description="generate writes a completion for every prompt")
    data: PromptDataConfig

    @property
    def prompt_tokens(self) -> int | None:
        """The most tokens of a prompt; None where the job says nothing of it."""
        return self.data.max_prompt_tokens
