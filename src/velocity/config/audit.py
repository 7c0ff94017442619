"""What is looked for in the text of records before training, and what becomes of a row where it is found."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from velocity.config.base import Config


def _off(value: Any) -> Any:
    """YAML 1.1 reads an unquoted `off` as false."""
    return "off" if value is False else value


Act = Annotated[
    Literal["off", "report", "drop"],
    BeforeValidator(_off, json_schema_input_type=Literal["off", "report", "drop", False]),
]
StrictAct = Annotated[
    Literal["off", "report", "drop", "error"],
    BeforeValidator(_off, json_schema_input_type=Literal["off", "report", "drop", "error", False]),
]


class AuditConfig(Config):
    """`report`: `velocity check` says what it finds. `drop`: such a row of the training data is left out of the run."""

    duplicates: Act = Field("report", description="rows that say the same as an earlier one; drop keeps the first")
    overlap: Act = Field("report", description="training rows that hold text of a row of an evaluation set")
    secrets: StrictAct = Field("report", description="private keys, tokens and passwords in the text; error: no run")
    oddities: Act = Field("report", description="text that was decoded wrongly; a language that few rows of a set have")
    similarity: Annotated[float, Field(ge=0.5, le=1)] = Field(
        0.8, description="share of their 5-word runs that two rows have in common, from which they are duplicates"
    )
    words: Annotated[int, Field(ge=5)] = Field(13, description="words in a row that an overlap consists of")
    share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.05, description="share of an evaluation row's text in training from which it is an overlap; 0: any"
    )

    def acts(self, *acts: str) -> tuple[str, ...]:
        """The kinds of findings of which one of these becomes."""
        kinds = ("duplicates", "overlap", "secrets", "oddities")
        return tuple(kind for kind in kinds if getattr(self, kind) in acts)
