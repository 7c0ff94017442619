"""A template rendered, and the assistant's turns found in its text: by characters first, then by tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.making import tiny_tokenizer
from velocity.data.records import Message, RecordError
from velocity.data.turns import Turns

QUESTION: Message = {"role": "user", "content": "q"}
ANSWER: Message = {"role": "assistant", "content": "A"}
# A model that thinks before it speaks: the template opens its thought, and shows none of what was thought.
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)


def turns(name: str | None, template: str | None = None) -> Turns:
    tokenizer = tiny_tokenizer(name)
    if template is not None:
        tokenizer.chat_template = template
    return Turns(tokenizer)


def refusal(call: Any, *arguments: Any) -> str:
    with pytest.raises(RecordError) as caught:
        call(*arguments)
    return f"{caught.value.field}: {caught.value}"


def test_the_name_of_a_special_token_is_that_token_in_a_chat_and_text_in_a_plain_text():
    made = turns("smollm2")
    end = made.tokenizer.convert_tokens_to_ids("<|im_end|>")
    for _ in range(2):  # the backend keeps what it was told for the text before
        assert made.ids("<|im_end|>") == [end]
        assert end not in made.ids("<|im_end|>", plain=True)


def test_no_bos_is_put_before_a_text():
    made = Turns(tiny_tokenizer("llama3", add_bos=True))
    assert made.tokenizer("a")["input_ids"][0] == made.tokenizer.bos_token_id
    assert made.tokenizer.bos_token_id not in [*made.ids("a"), *made.ids("a", plain=True)]


class Slow:
    """A tokenizer in Python: a token a character."""

    is_fast = False
    all_special_ids, added_tokens_decoder, chat_template = [1], dict[int, Any](), "x"

    def __call__(self, text: str, **how: bool) -> dict[str, list[int]]:
        assert how == {"add_special_tokens": False, "split_special_tokens": False}
        return {"input_ids": [ord(letter) for letter in text]}


def test_a_slow_tokenizer_gives_ids_but_no_places():
    assert Turns(Slow()).ids("ab") == [97, 98]
    said = refusal(Turns(Slow()).masked, "ab", [(0, 1)])
    assert said == "messages: chats need a fast tokenizer (one with a tokenizer.json)"


def test_a_prompt_is_rendered_up_to_where_the_assistant_begins():
    made = turns("llama3")
    head = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|>"
    assert made.render([QUESTION]) == head
    assert made.render([QUESTION], prompt=True) == head + "<|start_header_id|>assistant<|end_header_id|>\n\n"


def test_messages_that_cannot_be_rendered_are_refused_with_the_reason():
    assert "the tokenizer has no chat template; set data.chat_template" in refusal(turns(None).render, [QUESTION])
    said = refusal(turns("mistral").render, [QUESTION, QUESTION])
    assert said.startswith("messages: the chat template refuses it: Conversation roles must alternate")


def test_a_turn_stands_between_its_prompt_and_its_end():
    made, messages = turns("mistral-v1"), [QUESTION, ANSWER, QUESTION, ANSWER]
    text = made.render(messages)
    assert text == "<s>[INST] q [/INST]A</s> [INST] q [/INST]A</s> "
    assert made.span(messages, 1, text) == ("<s>[INST] q [/INST]", "<s>[INST] q [/INST]A</s> ")
    assert made.span(messages, 3, text) == ("<s>[INST] q [/INST]A</s> [INST] q [/INST]", text)


def test_where_a_turn_does_not_show_what_its_prompt_opens_it_begins_behind_the_messages_before_it():
    made, messages = turns("smollm2", THINKING), [QUESTION, ANSWER]
    text = made.render(messages)
    assert not text.startswith(made.render([QUESTION], prompt=True))
    assert made.span(messages, 1, text) == ("<|im_start|>user\nq<|im_end|>\n", text)


def test_a_turn_behind_messages_that_are_rendered_otherwise_is_refused_by_its_number():
    made, messages = turns("mistral-v3"), [{"role": "system", "content": "Be short."}, QUESTION, ANSWER]
    said = refusal(made.span, messages, 2, made.render(messages))
    assert said == "messages[2]: the chat template does not render a prompt as the turn's beginning"


def masked(made: Turns, text: str, *trained: str) -> list[str]:
    """The text of each run of trained tokens; what is to be trained on are parts of the text, each found once."""
    ids, mask = made.masked(text, [(text.index(part), text.index(part) + len(part)) for part in trained])
    assert ids == made.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert (str(mask.dtype), len(mask)) == ("uint8", len(ids))
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]])))
    return [made.tokenizer.decode(ids[start:end]) for start, end in zip(edges[::2], edges[1::2], strict=True)]


def test_each_span_is_trained_on_up_to_its_last_special_token_and_nothing_between_them():
    text = "q<|im_end|>\n🙂A<|im_end|>\nr<|im_end|>\nB日<|im_end|> \n"
    found = masked(turns("smollm2"), text, "🙂A<|im_end|>\n", "B日<|im_end|> \n")
    assert found == ["🙂A<|im_end|>", "B日<|im_end|>"]


def test_a_text_without_spans_is_not_trained_on():
    assert masked(turns("smollm2"), "q<|im_end|>\n") == []


def test_a_token_across_the_beginning_of_a_span_belongs_to_what_stands_before_it():
    made = turns("qwen2_5")
    assert len(made.ids("\n\n")) == 1 and len(made.ids("assistant\n\n")) == len(made.ids("assistant\n"))
    [text] = masked(made, "assistant\n\nB<|im_end|>", "\nB<|im_end|>")
    assert text == "B<|im_end|>"


def test_a_token_across_the_end_of_a_span_belongs_to_what_stands_behind_it():
    made = turns("smollm2")
    assert len(made.ids(" b")) == 1  # text behind the end token would be refused, were it a part of the span
    assert masked(made, "A<|im_end|> b", "A<|im_end|> ") == ["A<|im_end|>"]


@pytest.mark.parametrize("text", ["A", "A\n", "A<|im_end|> END", "<|im_end|>A"])
def test_a_span_that_does_not_end_with_a_special_token_is_refused(text: str):
    said = refusal(turns("smollm2").masked, text, [(0, len(text))])
    assert said == "messages: the chat template ends the assistant's turn without a special token"
