"""Rows of every kind become items: what is put before the model, and what is scored."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter

from tests.making import tiny_tokenizer
from velocity.config.evaluate import EvalSet
from velocity.data.encode import LongChat
from velocity.data.records import RecordError
from velocity.evaluation.items import ItemRules, Reader, build_reader
from velocity.evaluation.store import Item

QUESTION = {"question": "What is a buffer?", "choices": ["a copy", "the length of an input"], "answer": 1}


def reader(kind: str, tokenizer: Any = None, **settings: Any) -> Reader:
    source = TypeAdapter(EvalSet).validate_python({"path": "x.jsonl", "kind": kind, **settings})
    rules = ItemRules(settings.pop("limit", 256), "error")
    return build_reader(source, tokenizer or tiny_tokenizer(), rules, lambda question: question)


def texts(item: Item, tokenizer: Any) -> tuple[str, list[str]]:
    return tokenizer.decode(item.prompt), [
        tokenizer.decode(option.ids[option.trained.astype(bool)]) for option in item.options
    ]


def test_a_choice_is_the_assistants_turn_behind_the_templates_prompt():
    tokenizer = tiny_tokenizer()
    prompt, options = texts(reader("choices", tokenizer).item(QUESTION), tokenizer)
    assert prompt.endswith("<|im_start|>user\nWhat is a buffer?<|im_end|>\n<|im_start|>assistant\n")
    assert options == ["a copy<|im_end|>", "the length of an input<|im_end|>"]


def test_without_a_chat_template_a_choice_follows_the_prompt_after_a_space():
    tokenizer = tiny_tokenizer(None)
    item = reader("choices", tokenizer).item(QUESTION)
    assert texts(item, tokenizer) == ("What is a buffer?", [" a copy", " the length of an input"])
    whole = tokenizer("What is a buffer? a copy", add_special_tokens=False)["input_ids"]
    assert [*item.prompt, *item.options[0].ids] == whole


def test_plain_text_can_be_asked_for_and_begins_with_the_bos_that_the_tokenizer_adds():
    tokenizer = tiny_tokenizer(add_bos=True)
    item = reader("choices", tokenizer, format="text").item({**QUESTION, "prompt": "What is a buffer?"})
    assert item.prompt[0] == tokenizer.bos_token_id
    assert texts(item, tokenizer)[1] == [" a copy", " the length of an input"]


def test_bytes_are_those_of_the_choices_text():
    assert reader("choices").item({**QUESTION, "choices": ["naïve", "a"]}).bytes == [6, 1]


@pytest.mark.parametrize("answer", [1, "the length of an input"])
def test_the_right_choice_is_named_by_its_number_or_its_text(answer: Any):
    assert reader("choices").item({**QUESTION, "answer": answer}).told["answer"] == 1


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"answer": 2}, "answer"), ({"answer": True}, "answer"), ({"answer": "a buffer"}, "answer"),
        ({"choices": ["a copy"]}, "choices"), ({"choices": ["a", "a"]}, "choices"), ({"choices": "a copy"}, "choices"),
        ({"choices": ["a", " "]}, "choices"), ({"question": 3}, "prompt"),
    ],
)  # fmt: skip
def test_a_wrong_question_names_its_field(change: dict[str, Any], field: str):
    with pytest.raises(RecordError) as error:
        reader("choices").item({**QUESTION, **change})
    assert error.value.field == field


def test_of_a_pair_the_chosen_answer_is_the_right_choice():
    item = reader("preference").item({"prompt": "Why?", "chosen": "for a copy", "rejected": "no"})
    assert (item.told["choices"], item.told["answer"]) == (["for a copy", "no"], 0)


def test_a_text_is_scored_whole_in_windows_and_a_chat_where_the_assistant_speaks():
    tokenizer = tiny_tokenizer()
    item = build_reader(
        TypeAdapter(EvalSet).validate_python("x.jsonl"), tokenizer, ItemRules(16, "error"), lambda question: question
    ).item({"text": "the length of every input and more bytes than the buffer holds"})
    assert not item.prompt
    assert len(item.options) > 1
    scored = "".join(texts(item, tokenizer)[1])
    # all but the first token, which nothing precedes
    assert "the length of every input and more bytes than the buffer holds".endswith(scored.removesuffix("<|im_end|>"))
    chat = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "for a copy"}]}
    assert texts(reader("perplexity", tokenizer).item(chat), tokenizer)[1] == ["for a copy<|im_end|>"]


def test_bytes_of_a_text_are_those_that_are_scored():
    tokenizer = tiny_tokenizer(add_bos=True)
    item = reader("perplexity", tokenizer).item({"text": "naïve"})
    assert sum(item.bytes) == 6  # behind the BOS every byte is scored; what ends the text has none


def test_what_is_compared_with_is_the_last_turn_or_a_named_reference():
    chat = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "for a copy"}]}
    item = reader("answers", metrics=["f1"]).item(chat)
    assert item.told == {"prompt": "Why?", "reference": ["for a copy"]}
    assert not item.options
    named = reader("answers", metrics=["f1"]).item({"prompt": "Why?", "references": ["a", "b"]})
    assert named.told["reference"] == ["a", "b"]


def test_what_stands_before_a_question_is_put_there_and_is_not_told_as_the_question():
    source = TypeAdapter(EvalSet).validate_python({"path": "x.jsonl", "kind": "choices"})
    tokenizer = tiny_tokenizer()
    item = build_reader(source, tokenizer, ItemRules(256, "error"), lambda text: f"It is known.\n{text}").item(QUESTION)
    assert "user\nIt is known.\nWhat is a buffer?<|im_end|>" in texts(item, tokenizer)[0]
    assert item.told["prompt"] == "What is a buffer?"


def test_a_question_that_is_too_long_is_refused_or_loses_the_beginning_of_its_prompt():
    source = TypeAdapter(EvalSet).validate_python({"path": "x.jsonl", "kind": "choices"})
    tokenizer = tiny_tokenizer()
    with pytest.raises(LongChat, match="data.sequence_length is 24"):
        build_reader(source, tokenizer, ItemRules(24, "error"), lambda text: text).item(QUESTION)
    cut = build_reader(source, tokenizer, ItemRules(24, "cut"), lambda text: text).item(QUESTION)
    assert len(cut.prompt) + max(len(option.ids) for option in cut.options) == 24
    assert tokenizer.decode(cut.prompt).endswith("assistant\n")
