"""A row of a file becomes a record, whatever of the common formats it has. It knows no tokenizer and no file."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from typing import Any

from velocity.config.sections import Format
from velocity.data.records import Chat, Feedback, Message, Preference, Record, RecordError, Text

ROLES = ("system", "user", "assistant", "tool")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}

# Fields that tell a format, the most telling first.
TELLING = (
    ("preference", ("chosen", "rejected")),
    ("feedback", ("prompt", "completion", "label")),
    ("chat", ("messages",)),
    ("chat", ("conversations",)),
    ("prompt_completion", ("prompt", "completion")),
    ("prompt_completion", ("instruction", "output")),
    ("text", ("text",)),
)

TELLING_PROMPTS = (
    ("chat", ("messages",)),
    ("chat", ("conversations",)),
    ("prompt_completion", ("prompt",)),
    ("prompt_completion", ("instruction",)),
    ("preference", ("chosen", "rejected")),
    ("text", ("text",)),
)


def parse(
    row: Any, format_name: str | None, fields: Mapping[str, str], formats: Sequence[str] = typing.get_args(Format)
) -> Record:
    """The record of one row; RecordError where a field is missing or of the wrong type.

    `fields` maps the names used here to those of the data; `format_name` None recognises one of the `formats`.
    """
    row = _named(row, fields)
    name = format_name or _recognise(row, formats)
    if name == "text":
        return Text(_string(row, "text"))
    if name == "chat":
        return _chat(row)
    if name == "preference":
        return _preference(row)
    if name == "feedback":
        return _feedback(row)
    return _prompt_completion(row)


def parse_prompt(row: Any, format_name: str | None, fields: Mapping[str, str]) -> Text | tuple[Message, ...]:
    """What of a row is a prompt: text that is gone on with, or messages that are answered; RecordError as above.

    Of a row that training reads it is what stands before the last answer.
    """
    row = _named(row, fields)
    name = format_name or _recognise_prompt(row)
    if name == "text":
        return Text(_string(row, "text"))
    if name == "chat":
        messages = _conversation(row)
        while messages and messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        if not messages:
            raise RecordError("messages", "no turn that could be answered")
        return messages
    if name == "preference" and "prompt" not in row:
        return _preference(row).prompt
    if name == "prompt_completion" and "prompt" not in row and "instruction" in row:
        return _checked_messages(_instruction(row), "messages")
    prompt = _prompt(row)
    _check_prompt(prompt)
    return prompt


def _named(row: Any, fields: Mapping[str, str]) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise RecordError("", f"a record is a JSON object, not {type(row).__name__}")
    return {**row, **{name: row[there] for name, there in fields.items() if there in row}}


def _recognise_prompt(row: Mapping[str, Any]) -> str:
    for name, needed in TELLING_PROMPTS:
        if all(field in row for field in needed):
            return name
    names = sorted(map(str, row))
    raise RecordError("", f"no prompt in the fields {names}; name format and fields, or give a template")


def _recognise(row: Mapping[str, Any], formats: Sequence[str]) -> str:
    meant = [name for name, needed in TELLING if all(field in row for field in needed)]
    for name in meant:
        if name in formats:
            return name
    if meant:
        raise RecordError("", f"a {meant[0]} record is nothing that this task trains on; it takes {', '.join(formats)}")
    names = sorted(map(str, row))  # a CSV row with too many cells has a field without a name
    raise RecordError("", f"no format has the fields {names}; name data.train.format and fields")


def _string(row: Mapping[str, Any], field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        what = "is missing" if field not in row else f"is {type(value).__name__}, not text"
        raise RecordError(field, f"'{field}' {what}")
    if not value.strip():
        raise RecordError(field, f"'{field}' is empty")
    return characters(value, field)


def characters(text: str, field: str) -> str:
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
    return _checked([*_instruction(row), {"role": "assistant", "content": _string(row, "output")}])


def _instruction(row: Mapping[str, Any]) -> tuple[Message, ...]:
    """Alpaca's prompt."""
    instruction, extra = _string(row, "instruction"), row.get("input")
    prompt = f"{instruction}\n\n{extra}" if isinstance(extra, str) and extra.strip() else instruction
    asked = {"role": "user", "content": prompt}
    return ({"role": "system", "content": row["system"]}, asked) if row.get("system") else (asked,)


def _pair(prompt: str, completion: str) -> list[Message]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]


def _chat(row: Mapping[str, Any]) -> Chat:
    return _with_turn(_conversation(row))


def _conversation(row: Mapping[str, Any]) -> tuple[Message, ...]:
    field = "messages" if "messages" in row else "conversations"
    messages = row.get(field)
    if not isinstance(messages, list) or not messages:
        what = "is missing" if field not in row else "is not a list of messages"
        raise RecordError(field, f"'{field}' {what}")
    return _checked_messages([_message(message, f"{field}[{i}]") for i, message in enumerate(messages)], "messages")


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
    return _with_turn(_checked_messages(messages, "messages"))


def _with_turn(messages: tuple[Message, ...]) -> Chat:
    if not any(message["role"] == "assistant" for message in messages):
        raise RecordError("messages", "no turn of the assistant: there is nothing to train on")
    return Chat(messages)


def _checked_messages(messages: Sequence[Any], field: str) -> tuple[Message, ...]:
    for i, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES:
            raise RecordError(f"{field}[{i}].role", f"role {role!r} is not one of {', '.join(ROLES)}")
        content = message.get("content")
        if not isinstance(content, str) and not message.get("tool_calls"):
            raise RecordError(f"{field}[{i}].content", f"content is {type(content).__name__}, not text")
        characters(content or "", f"{field}[{i}].content")
    return tuple(map(_without_empty, messages))


def _preference(row: Mapping[str, Any]) -> Preference:
    """Also two whole conversations, with a prompt beside them or without: what they share is the prompt."""
    chosen, rejected = (_turns(row, field, "assistant") for field in ("chosen", "rejected"))
    if chosen == rejected:
        raise RecordError("chosen", "the chosen and the rejected answer are the same")
    if chosen[0]["role"] == "assistant" and rejected[0]["role"] == "assistant":
        prompt = _prompt(row)
    else:
        pairs = enumerate(zip(chosen, rejected, strict=False))
        shared = next((i for i, (one, other) in pairs if one != other), min(len(chosen), len(rejected)))
        prompt, chosen, rejected = _with_system(chosen[:shared], row), chosen[shared:], rejected[shared:]
    _check_prompt(prompt)
    for field, answer in (("chosen", chosen), ("rejected", rejected)):
        _check_answer(answer, field)
    return Preference(prompt, chosen, rejected)


def _feedback(row: Mapping[str, Any]) -> Feedback:
    completion, prompt = _turns(row, "completion", "assistant"), _prompt(row)
    _check_prompt(prompt)
    _check_answer(completion, "completion")
    return Feedback(prompt, completion, _label(row.get("label")))


LABELS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}  # as tables say it


def _label(value: Any) -> bool:
    meant = LABELS.get(str(value).lower())
    if meant is None:
        raise RecordError("label", f"'label' is {value!r}; true for a desirable answer, false for an undesirable one")
    return meant


def _turns(row: Mapping[str, Any], field: str, role: str) -> tuple[Message, ...]:
    """The messages of a field: one of `role` where it is text."""
    if not isinstance(row.get(field), list):
        return ({"role": role, "content": _string(row, field)},)
    messages = [_message(message, f"{field}[{i}]") for i, message in enumerate(row[field])]
    if not messages:
        raise RecordError(field, f"'{field}' is empty")
    return _checked_messages(messages, field)


def _prompt(row: Mapping[str, Any]) -> tuple[Message, ...]:
    return _with_system(_turns(row, "prompt", "user"), row)


def _with_system(prompt: tuple[Message, ...], row: Mapping[str, Any]) -> tuple[Message, ...]:
    return ({"role": "system", "content": _string(row, "system")}, *prompt) if row.get("system") else prompt


def _check_prompt(prompt: tuple[Message, ...]) -> None:
    if not prompt:
        raise RecordError("prompt", "the two conversations share no prompt")
    if prompt[-1]["role"] == "assistant":
        raise RecordError("prompt", "the prompt ends with a turn of the assistant, which leaves nothing to answer")


def _check_answer(answer: tuple[Message, ...], field: str) -> None:
    if not answer or answer[0]["role"] != "assistant":
        raise RecordError(field, f"'{field}' does not go on with a turn of the assistant")


def _without_empty(message: Message) -> Message:
    """Without the keys that Parquet gives to every row: a template may ask whether `tool_calls` is there."""
    return {key: value for key, value in message.items() if value is not None or key == "content"}
