"""What an item of data is, and how a row of a file becomes one. It knows no tokenizer and no file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

ROLES = ("system", "user", "assistant", "tool")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
Message: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Text:
    """Plain text; every token is trained on."""

    text: str


@dataclass(frozen=True)
class Chat:
    """Messages with a role and content; the assistant's turns are trained on."""

    messages: tuple[Message, ...]


Record: TypeAlias = Text | Chat


class RecordError(ValueError):
    """A row that is no record: `field` names the place, the message says why."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(why)
        self.field = field


# Fields that tell a format, the most telling first.
TELLING = (
    ("chat", ("messages",)),
    ("chat", ("conversations",)),
    ("prompt_completion", ("prompt", "completion")),
    ("prompt_completion", ("instruction", "output")),
    ("text", ("text",)),
)


def parse(row: Any, format_name: str | None, fields: Mapping[str, str]) -> Record:
    """The record of one row; RecordError where a field is missing or of the wrong type.

    `fields` maps the names used here to those of the data; `format_name` None recognises the format.
    """
    if not isinstance(row, dict):
        raise RecordError("", f"a record is a JSON object, not {type(row).__name__}")
    row = {**row, **{name: row[there] for name, there in fields.items() if there in row}}
    name = format_name or _recognise(row)
    if name == "text":
        return Text(_string(row, "text"))
    if name == "chat":
        return _chat(row)
    return _prompt_completion(row)


def _recognise(row: Mapping[str, Any]) -> str:
    for name, needed in TELLING:
        if all(field in row for field in needed):
            return name
    names = sorted(map(str, row))  # a CSV row with too many cells has a field without a name
    raise RecordError("", f"no format has the fields {names}; name data.train.format and fields")


def _string(row: Mapping[str, Any], field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        what = "is missing" if field not in row else f"is {type(value).__name__}, not text"
        raise RecordError(field, f"'{field}' {what}")
    if not value.strip():
        raise RecordError(field, f"'{field}' is empty")
    return _characters(value, field)


def _characters(text: str, field: str) -> str:
    """The text; JSON can hold half of a surrogate pair, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RecordError(field, f"{text[error.start]!r} at character {error.start} is no character") from None
    return text


def _prompt_completion(row: Mapping[str, Any]) -> Chat:
    if "prompt" in row or "completion" in row:
        prompt, completion = row.get("prompt"), row.get("completion")
        if isinstance(prompt, list) and isinstance(completion, list):
            return _checked([*prompt, *completion])
        return _checked(_pair(_string(row, "prompt"), _string(row, "completion")))
    instruction = _string(row, "instruction")
    extra = row.get("input")
    prompt = f"{instruction}\n\n{extra}" if isinstance(extra, str) and extra.strip() else instruction
    messages = _pair(prompt, _string(row, "output"))
    system = row.get("system")
    return _checked([{"role": "system", "content": system}, *messages] if system else messages)


def _pair(prompt: str, completion: str) -> list[Message]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]


def _chat(row: Mapping[str, Any]) -> Chat:
    field = "messages" if "messages" in row else "conversations"
    messages = row.get(field)
    if not isinstance(messages, list) or not messages:
        what = "is missing" if field not in row else "is not a list of messages"
        raise RecordError(field, f"'{field}' {what}")
    return _checked([_message(message, f"{field}[{i}]") for i, message in enumerate(messages)])


def _message(message: Any, field: str) -> Message:
    if not isinstance(message, dict):
        raise RecordError(field, f"a message is an object with role and content, not {type(message).__name__}")
    if "from" in message and "role" not in message:  # ShareGPT
        speaker = message["from"]
        if not isinstance(speaker, str) or speaker not in SHAREGPT_ROLES:
            raise RecordError(f"{field}.from", f"unknown speaker {speaker!r}; one of {sorted(SHAREGPT_ROLES)}")
        return {"role": SHAREGPT_ROLES[speaker], "content": message.get("value")}
    return message


def _checked(messages: Sequence[Any]) -> Chat:
    for i, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES:
            raise RecordError(f"messages[{i}].role", f"role {role!r} is not one of {', '.join(ROLES)}")
        content = message.get("content")
        if not isinstance(content, str) and not message.get("tool_calls"):
            raise RecordError(f"messages[{i}].content", f"content is {type(content).__name__}, not text")
        _characters(content or "", f"messages[{i}].content")
    if not any(message["role"] == "assistant" for message in messages):
        raise RecordError("messages", "no turn of the assistant: there is nothing to train on")
    return Chat(tuple(map(_without_empty, messages)))


def _without_empty(message: Message) -> Message:
    """Without the keys that Parquet gives to every row: a template may ask whether `tool_calls` is there."""
    return {key: value for key, value in message.items() if value is not None or key == "content"}
