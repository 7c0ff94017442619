"""Where passages come from that stand before each question, and how they are found."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from velocity.config.sections import PlaceConfig


class RetrievalConfig(PlaceConfig):
    """Passages of a corpus that a question finds: they stand before it in the prompt."""

    method: Literal["bm25", "embeddings"] = Field(
        "bm25", description="by words in common, or by the angle between embeddings of question and passage"
    )
    model: str | None = Field(None, description="method embeddings: the folder or hub id of an embedding model")
    passages: PositiveInt = Field(3, description="found for each question")
    words: Annotated[int, Field(ge=8)] = Field(120, description="of a passage, at most, unless a sentence is longer")

    @model_validator(mode="after")
    def _embeddings_have_a_model(self) -> RetrievalConfig:
        if (self.method == "embeddings") != (self.model is not None):
            raise ValueError("method: embeddings and model go together; e.g. method: embeddings, model: models/e5")
        return self
