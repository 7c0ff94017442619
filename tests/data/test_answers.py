"""A prompt and its answers as tokens: what the model sees at inference, what it is to write, what a long one loses."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from tests.making import TEXT, read_template, tiny_tokenizer
from velocity.data.answers import Answer, encode_answers, fit
from velocity.data.records import Message, RecordError
from velocity.data.turns import Turns

# What each template writes of an answer, up to the token that ends it; of some it takes the space around the content.
WRITTEN = {
    "smollm2": "{}<|im_end|>",
    "llama3": "{}<|eot_id|>",
    "qwen2_5": "{}<|im_end|>",
    "qwen3": "<think>\n\n</think>\n\n{}<|im_end|>",
    "mistral": " {}</s>",
    "mistral-v1": "{}</s>",
    "mistral-v3": " {}</s>",
    "mistral-system-last": " {}</s>",
}
WITH_SYSTEM = ("smollm2", "llama3", "qwen2_5", "qwen3", "mistral-system-last")
CONTENTS = ["A flaw.", "An  overflow.\n\nOf a buffer [1]:", "🙂 Größe", "日", "x" * 50, ""]


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


SYSTEM: Message = {"role": "system", "content": "Be short."}
ONE = [user("What is it?")]
SEVERAL = [user("What is it?"), assistant("A flaw [1]."), user("🙂 Why?\n")]
PROMPTS = [
    *((name, prompt) for name in WRITTEN for prompt in (ONE, SEVERAL)),
    *((name, [SYSTEM, *prompt]) for name in WITH_SYSTEM for prompt in (ONE, SEVERAL)),
]


def tokenizer_of(name: str) -> Any:
    """As the family's own: those of Llama 3 and Mistral put a BOS before a plain text."""
    return tiny_tokenizer(name, add_bos=name.startswith(("llama3", "mistral")))


def seen_at_inference(tokenizer: Any, prompt: list[Message]) -> list[int]:
    text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def encoded(tokenizer: Any, prompt: list[Message], *answers: list[Message]) -> tuple[list[int], list[Answer]]:
    ids, made = encode_answers(Turns(tokenizer), prompt, answers)
    assert {str(array.dtype) for array in (ids, *(answer.ids for answer in made))} == {"int32"}
    assert {str(answer.trained.dtype) for answer in made} == {"uint8"}
    return ids.tolist(), made


def trained_texts(tokenizer: Any, answer: Answer) -> list[str]:
    """The text of each run of trained tokens."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], answer.trained, [0]])))
    return [tokenizer.decode(answer.ids[start:end]) for start, end in zip(edges[::2], edges[1::2], strict=True)]


@pytest.mark.parametrize(("name", "prompt"), PROMPTS)
def test_the_prompt_is_what_the_model_sees_at_inference(name: str, prompt: list[Message]):
    tokenizer = tokenizer_of(name)
    for content in CONTENTS:
        ids, _ = encoded(tokenizer, prompt, [assistant(content)], [assistant("another")])
        assert ids == seen_at_inference(tokenizer, prompt), repr(content)


@pytest.mark.parametrize(("name", "prompt"), PROMPTS)
def test_an_answer_is_what_the_template_writes_of_it_up_to_its_end_token_and_is_trained_on_whole(
    name: str, prompt: list[Message]
):
    tokenizer = tokenizer_of(name)
    for content in CONTENTS:
        _, [first, second] = encoded(tokenizer, prompt, [assistant(content)], [assistant("another")])
        assert tokenizer.decode(first.ids) == WRITTEN[name].format(content)
        assert tokenizer.decode(second.ids) == WRITTEN[name].format("another")
        assert first.trained.tolist() == [1] * len(first.ids)
        assert second.trained.tolist() == [1] * len(second.ids)


@pytest.mark.parametrize(("name", "prompt"), PROMPTS)
def test_prompt_and_answer_are_together_the_whole_chat_as_it_is_tokenised(name: str, prompt: list[Message]):
    tokenizer = tokenizer_of(name)
    for content in CONTENTS:
        ids, [answer] = encoded(tokenizer, prompt, [assistant(content)])
        text = tokenizer.apply_chat_template([*prompt, assistant(content)], tokenize=False)
        whole = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert [*ids, *answer.ids.tolist()] == whole[: len(ids) + len(answer.ids)]
        behind = tokenizer.decode(whole[len(ids) + len(answer.ids) :])
        assert behind == {"smollm2": "\n", "qwen2_5": "\n", "qwen3": "\n", "mistral-v1": " "}.get(name, "")


def sentence_tokenizer() -> Any:
    """A tokenizer as Mistral's and Llama 2's: it puts a space before whatever it is given."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    backend.train_from_iterator([TEXT], trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    made.chat_template = read_template("mistral-v1")
    return made


def test_an_answer_goes_on_from_its_prompt_where_a_text_of_its_own_would_begin_with_a_space():
    tokenizer = sentence_tokenizer()
    text = tokenizer.apply_chat_template([*ONE, assistant("buffer")], tokenize=False)
    assert text.endswith("[/INST]buffer</s> ")
    ids, [answer] = encoded(tokenizer, ONE, [assistant("buffer")])
    assert ids == seen_at_inference(tokenizer, ONE)
    assert [*ids, *answer.ids.tolist()] == tokenizer(text, add_special_tokens=False)["input_ids"][:-1]
    pieces = tokenizer.convert_ids_to_tokens(answer.ids.tolist())
    assert "".join(pieces) == "buffer</s>"
    assert tokenizer.tokenize("buffer")[0].startswith("▁"), "alone it would"


@pytest.mark.parametrize("name", [name for name in WRITTEN if name.startswith(("llama3", "mistral"))])
def test_there_is_one_bos_and_it_begins_the_prompt(name: str):
    tokenizer = tokenizer_of(name)
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id, "a second one is ready"
    ids, [answer] = encoded(tokenizer, SEVERAL, [assistant("A"), user("r"), assistant("B")])
    everything = [*ids, *answer.ids.tolist()]
    assert [i for i, token in enumerate(everything) if token == tokenizer.bos_token_id] == [0]


def test_an_answer_that_would_join_the_prompt_in_a_token_is_tokenised_alone_and_leaves_the_prompt_as_it_is():
    # "assistant\n" + "\nB": in the whole chat both newlines are one token, which no model writes behind this prompt
    tokenizer = tiny_tokenizer("qwen2_5")
    text = tokenizer.apply_chat_template([*ONE, assistant("\nB")], tokenize=False)
    seen = seen_at_inference(tokenizer, ONE)
    assert tokenizer(text, add_special_tokens=False)["input_ids"][: len(seen)] != seen
    ids, [joined, other] = encoded(tokenizer, ONE, [assistant("\nB")], [assistant("C")])
    assert ids == seen
    assert [tokenizer.decode(answer.ids) for answer in (joined, other)] == ["\nB<|im_end|>", "C<|im_end|>"]
    assert joined.trained.tolist() == [1] * len(joined.ids)


def test_the_turns_of_an_answer_that_is_tokenised_alone_are_found_in_it():
    tokenizer = tiny_tokenizer("qwen2_5")
    _, [answer] = encoded(tokenizer, ONE, [assistant("\nB"), user("r"), assistant("C")])
    assert trained_texts(tokenizer, answer) == ["\nB<|im_end|>", "C<|im_end|>"]


@pytest.mark.parametrize("name", [name for name in WRITTEN if name != "qwen3"])
def test_of_an_answer_of_several_messages_the_assistants_turns_alone_are_trained_on(name: str):
    tokenizer = tokenizer_of(name)
    messages = [assistant("A flaw."), user("And then?"), assistant("🙂 B"), user("So?"), assistant("C")]
    ids, [answer, other] = encoded(tokenizer, SEVERAL, messages, [assistant("D")])
    assert ids == seen_at_inference(tokenizer, SEVERAL)
    assert trained_texts(tokenizer, answer) == [WRITTEN[name].format(text) for text in ("A flaw.", "🙂 B", "C")]
    assert trained_texts(tokenizer, other) == [WRITTEN[name].format("D")]
    # the other speaker's turns are in it, too: each of the assistant's is written behind what it would see
    text = tokenizer.apply_chat_template([*SEVERAL, *messages], tokenize=False)
    assert text.startswith(tokenizer.decode([*ids, *answer.ids.tolist()]))


def test_a_question_behind_an_answer_is_no_part_of_it():
    tokenizer = tiny_tokenizer("smollm2")
    _, [answer] = encoded(tokenizer, ONE, [assistant("A"), user("And then?")])
    assert tokenizer.decode(answer.ids) == "A<|im_end|>"


def test_a_thought_is_a_part_of_the_answer_and_one_of_an_earlier_turn_is_not_in_the_prompt():
    tokenizer = tiny_tokenizer("qwen3")
    prompt = [user("q"), assistant("<think>\nhm\n</think>\n\na"), user("r")]
    ids, [answer] = encoded(tokenizer, prompt, [assistant("<think>\nho\n</think>\n\nA")])
    assert ids == seen_at_inference(tokenizer, prompt)
    assert "hm" not in tokenizer.decode(ids)
    assert trained_texts(tokenizer, answer) == ["<think>\nho\n</think>\n\nA<|im_end|>"]


def test_where_the_answers_do_not_show_what_the_prompt_opens_they_write_their_own_beginning():
    # the template opens a thought for the model, and shows none where there was none
    tokenizer = tiny_tokenizer("smollm2")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
    )
    ids, answers = encoded(tokenizer, [user("q")], [assistant("A")], [assistant("<think>\nhm")])
    assert tokenizer.decode(ids) == "<|im_start|>user\nq<|im_end|>\n"
    assert [trained_texts(tokenizer, answer) for answer in answers] == [
        ["<|im_start|>assistant\nA<|im_end|>"],
        ["<|im_start|>assistant\n<think>\nhm<|im_end|>"],  # it does, but a pair has one prompt
    ]


def refusal(tokenizer: Any, prompt: list[Message], *answers: list[Message]) -> str:
    with pytest.raises(RecordError) as caught:
        encoded(tokenizer, prompt, *answers)
    return f"{caught.value.field}: {caught.value}"


def test_an_answer_whose_earlier_turns_the_template_rewrites_is_refused():
    # Qwen 3 drops a thought, even an empty one, as soon as another question follows
    said = refusal(tiny_tokenizer("qwen3"), ONE, [assistant("A"), user("r"), assistant("B")])
    assert said == "messages[1]: the chat template rewrites earlier turns of an answer"


def test_a_template_that_shows_the_prompt_otherwise_than_the_chat_is_refused():
    # v0.3 drops the system turn as soon as the chat ends in an answer
    said = refusal(tiny_tokenizer("mistral-v3"), [SYSTEM, *ONE], [assistant("A")], [assistant("B")])
    assert said == "prompt: the chat template does not render the prompt as the answer's beginning"


def test_a_prompt_that_the_template_moves_for_one_of_the_two_answers_is_refused():
    # the system turn stands before the last question: behind the prompt's for one answer, in the answer for the other
    answers = [assistant("A")], [assistant("B"), user("r"), assistant("C")]
    said = refusal(tiny_tokenizer("mistral-system-last"), [SYSTEM, *ONE], *answers)
    assert said == "prompt: the chat template does not render the prompt as the answer's beginning"


def test_a_template_that_refuses_the_prompt_or_does_not_end_a_turn_is_refused():
    tokenizer = tiny_tokenizer("mistral")
    said = refusal(tokenizer, [SYSTEM, *ONE], [assistant("A")])
    assert said.startswith("messages: the chat template refuses it: Conversation roles must alternate")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    said = refusal(tokenizer, ONE, [assistant("A")])
    assert said == "messages: the chat template ends the assistant's turn without a special token"


def test_a_prompt_that_is_rendered_as_nothing_is_refused():
    tokenizer = tiny_tokenizer("smollm2")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
    )
    said = refusal(tokenizer, ONE, [assistant("A")])
    assert said == "prompt: the chat template renders the prompt as nothing"


BOS = 1


def fitted(prompt: list[int], lengths: list[int], limit: int, bos: int | None) -> tuple[list[int], list[list[int]]]:
    """The prompt and the answers that `fit` makes of a prompt and answers 100, 101, …, and 200, 201, …"""
    answers = [
        Answer(np.arange(length, dtype=np.int32) + 100 * number, (np.arange(length) % 2).astype(np.uint8))
        for number, length in enumerate(lengths, 1)
    ]
    made, kept = fit(np.array(prompt, dtype=np.int32), answers, limit, bos)
    for answer, original in zip(kept, answers, strict=True):
        assert answer.trained.tolist() == original.trained[: len(answer.ids)].tolist(), "the mask goes along"
        assert answer.ids.tolist() == original.ids[: len(answer.ids)].tolist(), "an answer loses its end alone"
    return made.tolist(), [answer.ids.tolist() for answer in kept]


EIGHT = [2, 3, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("prompt", "lengths", "bos", "kept", "kept_lengths"),
    [
        (EIGHT, [2, 1], None, EIGHT, [2, 1]),  # 8 + 2 are 10: nothing is cut
        (EIGHT, [4, 2], None, EIGHT[-6:], [4, 2]),  # the longer answer leaves room for 6
        (EIGHT, [2, 4], None, EIGHT[-6:], [2, 4]),
        (EIGHT, [5, 5], None, EIGHT[-5:], [5, 5]),
        (EIGHT, [9, 2], None, EIGHT[-5:], [5, 2]),  # it would leave room for 1; the prompt keeps half of 10
        (EIGHT, [7, 20], None, EIGHT[-5:], [5, 5]),  # both end at the same place
        (EIGHT[:3], [9, 8], None, EIGHT[:3], [7, 7]),  # a prompt below half is left whole
        (EIGHT[:5], [6, 1], None, EIGHT[:5], [5, 1]),
        (EIGHT, [4], None, EIGHT[-6:], [4]),  # a single answer
        ([BOS, *EIGHT], [4, 2], BOS, [BOS, *EIGHT[-5:]], [4, 2]),  # the BOS is one of the 6
        ([BOS, *EIGHT], [9, 9], BOS, [BOS, *EIGHT[-4:]], [5, 5]),
        (EIGHT, [4, 2], BOS, EIGHT[-6:], [4, 2]),  # a template that writes no BOS gets none
        ([BOS, *EIGHT], [4, 2], None, EIGHT[-6:], [4, 2]),  # no BOS is wanted: this is a token like any other
    ],
)
def test_a_limit_of_ten_takes_from_the_prompts_beginning_and_then_from_the_answers_ends(
    prompt: list[int], lengths: list[int], bos: int | None, kept: list[int], kept_lengths: list[int]
):
    made, answers = fitted(prompt, lengths, 10, bos)
    assert (made, [len(answer) for answer in answers]) == (kept, kept_lengths)


def test_whatever_the_lengths_no_more_is_cut_than_the_limit_asks_for():
    chance = random.Random(0)
    for _ in range(2000):
        limit, size, bos = chance.randint(8, 40), chance.randint(2, 60), chance.choice([None, BOS])
        lengths = [chance.randint(1, 60) for _ in range(chance.randint(1, 2))]
        prompt = [BOS, *range(2, size + 1)]
        made, answers = fitted(prompt, lengths, limit, bos)
        assert len(made) + max(map(len, answers)) == min(limit, size + max(lengths)), "full, or nothing was cut"
        if len(made) < size:
            head = [BOS] * (bos is not None)
            assert made == head + prompt[size - len(made) + len(head) :], "the prompt's end stays"
            assert len(made) >= limit // 2
        end = limit - len(made)
        assert [len(answer) for answer in answers] == [min(length, end) for length in lengths], "at the same place"
        if max(lengths) > end:
            assert len(made) <= limit // 2, "an answer is cut only where the prompt is down to its half"
