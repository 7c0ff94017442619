"""What an item of data is. It knows no tokenizer and no file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

Message: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Text:
    """Plain text; every token is trained on."""

    text: str


@dataclass(frozen=True)
class Chat:
    """Messages with a role and content; the assistant's turns are trained on."""

    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Preference:
    """A prompt and two answers to it, each a list of messages, of which one is preferred."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]


@dataclass(frozen=True)
class Feedback:
    """A prompt and an answer to it that is desirable or not."""

    prompt: tuple[Message, ...]
    completion: tuple[Message, ...]
    desirable: bool


Record: TypeAlias = Text | Chat | Preference | Feedback


class RecordError(ValueError):
    """A row that is no record: `field` names the place, the message says why."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(why)
        self.field = field
