"""A row to a record: every format, and every way a row is none."""

from __future__ import annotations

from typing import Any

import pytest

from velocity.data.records import Chat, RecordError, Text, parse

USER = {"role": "user", "content": "What is it?"}
ASSISTANT = {"role": "assistant", "content": "A flaw."}
SYSTEM = {"role": "system", "content": "Be short."}
CHAT = Chat((USER, ASSISTANT))


@pytest.mark.parametrize(
    ("row", "record"),
    [
        ({"text": "some text", "id": 7}, Text("some text")),
        ({"messages": [USER, ASSISTANT]}, CHAT),
        ({"messages": [SYSTEM, USER, ASSISTANT, USER]}, Chat((SYSTEM, USER, ASSISTANT, USER))),
        ({"prompt": "What is it?", "completion": "A flaw."}, CHAT),
        ({"prompt": [SYSTEM, USER], "completion": [ASSISTANT]}, Chat((SYSTEM, USER, ASSISTANT))),
        ({"instruction": "What is it?", "output": "A flaw."}, CHAT),
        ({"instruction": "What is it?", "input": "", "output": "A flaw."}, CHAT),
        ({"instruction": "What is it?", "input": None, "output": "A flaw."}, CHAT),
        ({"instruction": "What is it?", "output": "A flaw.", "system": "Be short."}, Chat((SYSTEM, USER, ASSISTANT))),
        (
            {"instruction": "Name it.", "input": "while (1) *p++ = c;", "output": "A flaw."},
            Chat(({"role": "user", "content": "Name it.\n\nwhile (1) *p++ = c;"}, ASSISTANT)),
        ),
        (
            {"conversations": [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A flaw."}]},
            CHAT,
        ),
        (
            {"conversations": [{"from": "system", "value": "Be short."}, USER, ASSISTANT]},
            Chat((SYSTEM, USER, ASSISTANT)),
        ),
    ],
)
def test_a_format_is_recognised_by_its_fields(row: dict[str, Any], record: Any):
    assert parse(row, None, {}) == record


def test_a_chat_is_recognised_before_a_text_that_stands_beside_it():
    assert parse({"text": "x", "messages": [USER, ASSISTANT]}, None, {}) == CHAT


def test_a_format_that_is_named_is_the_one_that_is_read():
    row = {"text": "x", "messages": [USER, ASSISTANT], "prompt": "What is it?", "completion": "A flaw."}
    assert parse(row, "text", {}) == Text("x")
    assert parse({**row, "messages": []}, "prompt_completion", {}) == CHAT


def test_fields_of_other_names_are_mapped():
    assert parse({"body": "some text"}, "text", {"text": "body"}) == Text("some text")
    assert parse({"q": "What is it?", "a": "A flaw."}, None, {"prompt": "q", "completion": "a"}) == CHAT


def test_a_call_of_a_tool_needs_no_content():
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    answer = {"role": "tool", "content": "4"}
    assert parse({"messages": [USER, call, answer, ASSISTANT]}, None, {}) == Chat((USER, call, answer, ASSISTANT))


@pytest.mark.parametrize(
    ("row", "format_name", "field", "why"),
    [
        (["text"], None, "", "a record is a JSON object, not list"),
        ("text", None, "", "a record is a JSON object, not str"),
        (None, None, "", "a record is a JSON object, not NoneType"),
        ({"body": "x", "id": 1}, None, "", "no format has the fields ['body', 'id']"),
        ({None: ["x"], "a": "b"}, None, "", "no format has the fields ['None', 'a']"),
        ({}, "text", "text", "'text' is missing"),
        ({"text": 5}, None, "text", "'text' is int, not text"),
        ({"text": None}, None, "text", "'text' is NoneType, not text"),
        ({"text": " \n"}, None, "text", "'text' is empty"),
        ({"text": "a\ud800b"}, None, "text", "'\\ud800' at character 1 is no character"),
        ({}, "chat", "conversations", "'conversations' is missing"),
        ({"messages": "hello"}, None, "messages", "'messages' is not a list of messages"),
        ({"messages": []}, None, "messages", "'messages' is not a list of messages"),
        ({"messages": ["hello"]}, None, "messages[0]", "a message is an object with role and content, not str"),
        ({"messages": [USER, {"content": "x"}]}, None, "messages[1].role", "role None is not one of system, user"),
        ({"messages": [{"role": "bot", "content": "x"}]}, None, "messages[0].role", "role 'bot' is not one of"),
        ({"messages": [USER, {"role": "assistant"}]}, None, "messages[1].content", "content is NoneType, not text"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, None, "messages[0].content", "content is list, not text"),
        (
            {"messages": [USER, {"role": "assistant", "content": "\udfff"}]},
            None, "messages[1].content", "'\\udfff' at character 0 is no character",
        ),
        ({"messages": [SYSTEM, USER]}, None, "messages", "no turn of the assistant"),
        ({"conversations": [{"from": "narrator", "value": "x"}]}, None, "conversations[0].from", "unknown speaker"),
        ({"conversations": [{"from": ["human"], "value": "x"}]}, None, "conversations[0].from", "unknown speaker"),
        ({"conversations": [{"from": "human"}]}, None, "messages[0].content", "content is NoneType, not text"),
        ({"prompt": "x"}, "prompt_completion", "completion", "'completion' is missing"),
        ({"prompt": 3, "completion": "x"}, None, "prompt", "'prompt' is int, not text"),
        ({"prompt": "x", "completion": ""}, None, "completion", "'completion' is empty"),
        ({"prompt": [USER], "completion": "x"}, None, "prompt", "'prompt' is list, not text"),
        ({"prompt": [USER], "completion": ["x"]}, None, "messages[1].role", "role None is not one of"),
        ({"instruction": "x", "output": None}, None, "output", "'output' is NoneType, not text"),
        ({"output": "x"}, "prompt_completion", "instruction", "'instruction' is missing"),
        ({"instruction": "x", "output": "y", "system": 3}, None, "messages[0].content", "content is int, not text"),
    ],
)  # fmt: skip
def test_a_row_that_is_no_record_is_refused_by_field(row: Any, format_name: str | None, field: str, why: str):
    with pytest.raises(RecordError) as caught:
        parse(row, format_name, {})
    assert (caught.value.field, str(caught.value)[: len(why)]) == (field, why)


def test_keys_that_a_table_has_in_every_row_and_this_message_has_not_are_left_out():
    messages = [
        {"role": "user", "content": "Why?", "tool_calls": None, "name": None},
        {"role": "assistant", "content": "So.", "tool_calls": None},
    ]
    parsed = parse({"messages": messages}, None, {})
    assert isinstance(parsed, Chat)
    assert parsed.messages == ({"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."})
