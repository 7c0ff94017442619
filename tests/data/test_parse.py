"""A row to a record: every format, and every way a row is none."""

from __future__ import annotations

from typing import Any

import pytest

from velocity.data.parse import parse
from velocity.data.records import Chat, Feedback, Preference, RecordError, Text

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


FLAW, FEATURE = ASSISTANT, {"role": "assistant", "content": "A feature."}
THEN, MORE = {"role": "user", "content": "And then?"}, {"role": "assistant", "content": "It is mended."}
PREFERENCE = Preference((USER,), (FLAW,), (FEATURE,))
PAIR = {"prompt": "What is it?", "chosen": "A flaw.", "rejected": "A feature."}


@pytest.mark.parametrize(
    ("row", "record"),
    [
        (PAIR, PREFERENCE),
        ({"prompt": [USER], "chosen": [FLAW], "rejected": [FEATURE]}, PREFERENCE),
        ({"prompt": [USER], "chosen": "A flaw.", "rejected": [FEATURE]}, PREFERENCE),
        ({"prompt": "What is it?", "chosen": [FLAW], "rejected": "A feature."}, PREFERENCE),
        ({**PAIR, "system": "Be short."}, Preference((SYSTEM, USER), (FLAW,), (FEATURE,))),
        ({**PAIR, "system": ""}, PREFERENCE),
        ({**PAIR, "system": None}, PREFERENCE),
        ({**PAIR, "prompt": [SYSTEM, USER]}, Preference((SYSTEM, USER), (FLAW,), (FEATURE,))),
        ({**PAIR, "prompt": [USER, FLAW, THEN]}, Preference((USER, FLAW, THEN), (FLAW,), (FEATURE,))),
        (
            {**PAIR, "chosen": [FLAW, THEN, MORE], "rejected": [FEATURE]},
            Preference((USER,), (FLAW, THEN, MORE), (FEATURE,)),
        ),
        ({**PAIR, "chosen": [{"from": "gpt", "value": "A flaw."}]}, PREFERENCE),
        ({**PAIR, "prompt": [{"from": "human", "value": "What is it?"}]}, PREFERENCE),
    ],
)  # fmt: skip
def test_a_preference_is_a_prompt_and_two_answers_as_text_or_as_messages(row: dict[str, Any], record: Any):
    assert parse(row, None, {}) == record
    assert parse(row, "preference", {}) == record


WHOLE = [
    ([USER, FLAW], [USER, FEATURE], PREFERENCE),
    ([SYSTEM, USER, FLAW], [SYSTEM, USER, FEATURE], Preference((SYSTEM, USER), (FLAW,), (FEATURE,))),
    (  # an answer that both give is a part of the prompt
        [USER, FLAW, THEN, MORE],
        [USER, FLAW, THEN, FEATURE],
        Preference((USER, FLAW, THEN), (MORE,), (FEATURE,)),
    ),
    ([USER, FLAW, THEN, MORE], [USER, FEATURE], Preference((USER,), (FLAW, THEN, MORE), (FEATURE,))),
]


@pytest.mark.parametrize("beside", [{}, {"prompt": "What is it?"}, {"prompt": [USER]}, {"messages": [USER, FLAW]}])
@pytest.mark.parametrize(("chosen", "rejected", "record"), WHOLE)
def test_of_two_whole_conversations_the_prompt_is_what_they_share(
    chosen: list[Any], rejected: list[Any], record: Preference, beside: dict[str, Any]
):
    assert parse({"chosen": chosen, "rejected": rejected, **beside}, None, {}) == record


@pytest.mark.parametrize("desirable", [True, False])
@pytest.mark.parametrize(
    ("row", "prompt", "completion"),
    [
        ({"prompt": "What is it?", "completion": "A flaw."}, (USER,), (FLAW,)),
        ({"prompt": [USER], "completion": [FLAW]}, (USER,), (FLAW,)),
        ({"prompt": "What is it?", "completion": "A flaw.", "system": "Be short."}, (SYSTEM, USER), (FLAW,)),
        ({"prompt": [SYSTEM, USER, FLAW, THEN], "completion": "It is mended."}, (SYSTEM, USER, FLAW, THEN), (MORE,)),
        ({"prompt": "What is it?", "completion": [FLAW, THEN, MORE]}, (USER,), (FLAW, THEN, MORE)),
    ],
)
def test_a_feedback_is_a_prompt_with_an_answer_and_a_label(
    row: dict[str, Any], prompt: tuple[Any, ...], completion: tuple[Any, ...], desirable: bool
):
    assert parse({**row, "label": desirable}, None, {}) == Feedback(prompt, completion, desirable)


@pytest.mark.parametrize("value", [True, 1, "true", "True", "TRUE", "1"])
def test_a_label_is_what_json_and_what_a_csv_file_calls_true(value: Any):
    record = parse({"prompt": "What is it?", "completion": "A flaw.", "label": value}, None, {})
    assert record == Feedback((USER,), (FLAW,), True)


@pytest.mark.parametrize("value", [False, 0, "false", "False", "FALSE", "0"])
def test_a_label_is_what_json_and_what_a_csv_file_calls_false(value: Any):
    record = parse({"prompt": "What is it?", "completion": "A flaw.", "label": value}, None, {})
    assert record == Feedback((USER,), (FLAW,), False)


def test_a_pair_is_recognised_before_what_stands_beside_it():
    beside = {"text": "x", "messages": [USER, MORE], "completion": "x", "label": True}
    assert parse({**beside, **PAIR}, None, {}) == PREFERENCE


def test_a_label_tells_feedback_from_a_prompt_with_its_completion():
    row = {"prompt": "What is it?", "completion": "A flaw.", "label": True}
    assert isinstance(parse(row, None, {}), Feedback)
    assert parse(row, "prompt_completion", {}) == CHAT
    assert parse({"prompt": "What is it?", "completion": "A flaw."}, None, {}) == CHAT


def test_fields_of_a_pair_and_of_a_feedback_are_mapped():
    pair = {"q": "What is it?", "good": "A flaw.", "bad": "A feature."}
    assert parse(pair, None, {"prompt": "q", "chosen": "good", "rejected": "bad"}) == PREFERENCE
    feedback = {"q": "What is it?", "a": "A flaw.", "liked": 0}
    names = {"prompt": "q", "completion": "a", "label": "liked"}
    assert parse(feedback, None, names) == Feedback((USER,), (FLAW,), False)


SAME = "the chosen and the rejected answer are the same"
NO_PROMPT = "the two conversations share no prompt"
ANSWERED = "the prompt ends with a turn of the assistant, which leaves nothing to answer"
TURN = {"prompt": "What is it?", "completion": "A flaw.", "label": True}


@pytest.mark.parametrize(
    ("row", "format_name", "field", "why"),
    [
        ({**PAIR, "rejected": "A flaw."}, None, "chosen", SAME),
        ({**PAIR, "rejected": [FLAW]}, None, "chosen", SAME),
        ({"chosen": [USER, FLAW], "rejected": [USER, FLAW]}, None, "chosen", SAME),
        ({"chosen": "a", "rejected": "b"}, None, "prompt", "'prompt' is missing"),
        ({"prompt": "x", "chosen": "a"}, "preference", "rejected", "'rejected' is missing"),
        ({**PAIR, "prompt": ""}, None, "prompt", "'prompt' is empty"),
        ({**PAIR, "prompt": []}, None, "prompt", "'prompt' is empty"),
        ({**PAIR, "prompt": 5}, None, "prompt", "'prompt' is int, not text"),
        ({**PAIR, "system": 5}, None, "system", "'system' is int, not text"),
        ({**PAIR, "chosen": " "}, None, "chosen", "'chosen' is empty"),
        ({**PAIR, "rejected": []}, None, "rejected", "'rejected' is empty"),
        ({**PAIR, "rejected": {"content": "a"}}, None, "rejected", "'rejected' is dict, not text"),
        ({**PAIR, "chosen": ["a"]}, None, "chosen[0]", "a message is an object with role and content, not str"),
        ({**PAIR, "chosen": [FLAW, {"role": "bot"}]}, None, "chosen[1].role", "role 'bot' is not one of"),
        ({**PAIR, "rejected": [{"role": "assistant"}]}, None, "rejected[0].content", "content is NoneType, not text"),
        ({**PAIR, "prompt": [{"role": "user"}]}, None, "prompt[0].content", "content is NoneType, not text"),
        ({**PAIR, "prompt": "a\ud800"}, None, "prompt", "'\\ud800' at character 1 is no character"),
        ({**PAIR, "prompt": [USER, FLAW]}, None, "prompt", ANSWERED),
        ({"chosen": [USER, FLAW, THEN, MORE], "rejected": [USER, FLAW]}, None, "prompt", ANSWERED),
        ({"chosen": [USER, FLAW], "rejected": [THEN, FLAW]}, None, "prompt", NO_PROMPT),
        ({**PAIR, "rejected": [USER, FEATURE]}, None, "prompt", NO_PROMPT),  # one is an answer, the other is not
        ({"chosen": [SYSTEM, USER, FLAW], "rejected": [SYSTEM, THEN, FLAW]}, None,
         "chosen", "'chosen' does not go on with a turn of the assistant"),
        ({"chosen": [USER, FLAW], "rejected": [USER, THEN]}, None,
         "rejected", "'rejected' does not go on with a turn of the assistant"),
        ({"chosen": [USER, FLAW], "rejected": [USER]}, None,
         "rejected", "'rejected' does not go on with a turn of the assistant"),
        ({**TURN, "completion": [USER, FLAW]}, None,
         "completion", "'completion' does not go on with a turn of the assistant"),
        ({**TURN, "completion": ""}, None, "completion", "'completion' is empty"),
        ({**TURN, "prompt": [USER, FLAW]}, None, "prompt", ANSWERED),
        ({"completion": "a", "label": True}, "feedback", "prompt", "'prompt' is missing"),
        ({"prompt": "x", "completion": "a"}, "feedback", "label", "'label' is None; true for a desirable answer"),
    ],
)  # fmt: skip
def test_a_row_that_is_no_pair_or_feedback_is_refused_by_field(row: Any, format_name: str | None, field: str, why: str):
    with pytest.raises(RecordError) as caught:
        parse(row, format_name, {})
    assert (caught.value.field, str(caught.value)[: len(why)]) == (field, why)


@pytest.mark.parametrize("value", [None, "", "yes", "maybe", 2, -1, 0.5, "2", [], [True]])
def test_a_label_that_is_neither_true_nor_false_is_refused_with_what_it_is(value: Any):
    with pytest.raises(RecordError) as caught:
        parse({**TURN, "label": value}, None, {})
    assert caught.value.field == "label"
    assert str(caught.value) == f"'label' is {value!r}; true for a desirable answer, false for an undesirable one"
