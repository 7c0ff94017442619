"""What of a record is looked at: its text, without the instructions that all rows share. It knows no file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from velocity.data.records import Chat, Feedback, Message, Preference, Record, Text


@dataclass(frozen=True)
class Passage:
    """The text of a record.

    `text` leaves out system turns, `answers` are what of it each answer says (none of a plain text), `everything` has
    all. Records of which one is liked and the other not differ in their `label`.
    """

    text: str
    answers: tuple[str, ...]
    everything: str
    label: str = ""


def passage_of(record: Record) -> Passage:
    """The record's text."""
    if isinstance(record, Text):
        return Passage(record.text, (), record.text)
    if isinstance(record, Chat):
        return _passage(record.messages, [[one for one in record.messages if one["role"] == "assistant"]])
    if isinstance(record, Preference):
        # One by one: where they have changed places the pair says the opposite, and another rival makes another pair.
        answers = [record.chosen, record.rejected]
        return _passage([*record.prompt, *record.chosen, *record.rejected], answers)
    assert isinstance(record, Feedback)
    return _passage([*record.prompt, *record.completion], [record.completion], str(record.desirable))


def _passage(messages: Iterable[Message], answers: Iterable[Iterable[Message]], label: str = "") -> Passage:
    messages = list(messages)
    spoken = [message for message in messages if message["role"] != "system"]
    return Passage(_joined(spoken), tuple(map(_joined, answers)), _joined(messages), label)


def _joined(messages: Iterable[Message]) -> str:
    return "\n".join(filter(None, (_said(message) for message in messages)))


def _said(message: Message) -> str:
    calls = message.get("tool_calls")
    called = json.dumps(calls, ensure_ascii=False, default=str) if calls else ""
    return "\n".join(filter(None, (message.get("content"), called)))
