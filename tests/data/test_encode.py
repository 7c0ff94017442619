"""Records to token ids and masks: what is trained on, what the model sees before it, and what is never lost."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.making import TEXT, chat, job_data, read_template, tiny_tokenizer
from velocity.config.training import TrainingJob
from velocity.data import encode
from velocity.data.encode import Encoder, EncodingRules, LongChat, TokenSequence, adds_bos
from velocity.data.parse import parse
from velocity.data.records import Chat, Feedback, Message, Preference, Record, RecordError, Text

# For each template, what it writes of an answer: the content, then the token that ends the turn.
ANSWERS = {
    "smollm2": "{}<|im_end|>",
    "llama3": "{}<|eot_id|>",
    "qwen2_5": "{}<|im_end|>",
    "mistral": " {}</s>",  # v0.2 puts a space before each answer
    "mistral-v1": "{}</s>",  # v0.1 puts one behind each, which joins what follows: `</s> [INST]`
}
CONTENTS = ["What is it?", "An  overflow.\n\nOf a buffer [1]:", "🙂 Why?", "日本語: naïve, `Größe`", "[2]", "x"]


def rules(length: int = 4096, train_on: str = "assistant", on_long_chat: str = "error") -> EncodingRules:
    return EncodingRules(length, train_on, on_long_chat)


def record(*contents: str, system: str | None = None) -> Chat:
    made = parse(chat(*contents, system=system), None, {})
    assert isinstance(made, Chat)
    return made


def encoded(tokenizer: Any, item: Record, **settings: Any) -> list[TokenSequence]:
    return Encoder(tokenizer, rules(**settings)).encode(item)


def runs(sequence: TokenSequence) -> list[range]:
    """The runs of tokens that are trained on."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], sequence.trained, [0]])))
    return [range(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True)]


def trained_texts(tokenizer: Any, sequence: TokenSequence) -> list[str]:
    return [tokenizer.decode(sequence.ids[run.start : run.stop]) for run in runs(sequence)]


def seen_at_inference(tokenizer: Any, messages: list[Message]) -> list[int]:
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))


SYSTEMS = [(name, system) for name in ANSWERS for system in (None, "Be short.")]


@pytest.mark.parametrize(("name", "system"), [s for s in SYSTEMS if s[1] is None or not s[0].startswith("mistral")])
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_trained_on_are_exactly_the_answers_and_the_token_that_ends_each(name: str, turns: int, system: str | None):
    tokenizer = tiny_tokenizer(name)
    item = record(*CONTENTS[: 2 * turns], system=system)
    [sequence] = encoded(tokenizer, item)
    assert trained_texts(tokenizer, sequence) == [ANSWERS[name].format(c) for c in CONTENTS[1 : 2 * turns : 2]]


@pytest.mark.parametrize("name", ANSWERS)
def test_before_each_answer_stands_what_the_model_sees_at_inference(name: str):
    tokenizer = tiny_tokenizer(name)
    item = record(*CONTENTS)
    [sequence] = encoded(tokenizer, item)
    for run, turn in zip(runs(sequence), (1, 3, 5), strict=True):
        assert list(sequence.ids[: run.start]) == seen_at_inference(tokenizer, list(item.messages[:turn]))


@pytest.mark.parametrize("name", ANSWERS)
def test_the_whole_chat_is_tokenised_as_inference_would(name: str):
    tokenizer = tiny_tokenizer(name)
    item = record(*CONTENTS)
    text = tokenizer.apply_chat_template(list(item.messages), tokenize=False)
    [sequence] = encoded(tokenizer, item)
    assert list(sequence.ids) == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_the_newline_behind_the_end_token_is_not_trained_on():
    tokenizer = tiny_tokenizer("smollm2")
    [sequence] = encoded(tokenizer, record("a", "b"))
    assert tokenizer.decode(sequence.ids).endswith("b<|im_end|>\n")
    assert list(sequence.trained[-3:]) == [1, 1, 0]  # b, <|im_end|>, the newline


def test_a_question_that_is_not_answered_is_context_alone():
    tokenizer = tiny_tokenizer("qwen2_5")
    [sequence] = encoded(tokenizer, record("a", "b", "and then?"))
    assert trained_texts(tokenizer, sequence) == ["b<|im_end|>"]


def test_two_answers_in_a_row_are_both_trained_on():
    tokenizer = tiny_tokenizer("smollm2")
    messages = ({"role": "user", "content": "a"}, *({"role": "assistant", "content": c} for c in "bc"))
    [sequence] = encoded(tokenizer, Chat(messages))
    assert trained_texts(tokenizer, sequence) == ["b<|im_end|>", "c<|im_end|>"]


def test_an_empty_answer_trains_its_end():
    tokenizer = tiny_tokenizer("llama3")
    [sequence] = encoded(tokenizer, record("a", ""))
    assert trained_texts(tokenizer, sequence) == ["<|eot_id|>"]


def test_a_token_that_joins_the_prompt_to_the_answer_is_not_trained_on():
    # "assistant\n" + "\nB": the tokenizer makes one token of both newlines, which inference could not see coming
    tokenizer = tiny_tokenizer("qwen2_5")
    assert len(tokenizer("\n\n")["input_ids"]) == 1
    [sequence] = encoded(tokenizer, record("a", "\nB"))
    assert trained_texts(tokenizer, sequence) == ["B<|im_end|>"]


def test_a_template_that_moves_the_system_turn_makes_a_sequence_of_each_turn():
    tokenizer = tiny_tokenizer("mistral-system-last")
    item = record("q", "A", "r", "B", system="Be short.")
    sequences = encoded(tokenizer, item)
    assert [tokenizer.decode(sequence.ids) for sequence in sequences] == [
        "<s>[INST] Be short.\n\nq[/INST] A</s>",
        "<s>[INST] q[/INST] A</s>[INST] Be short.\n\nr[/INST] B</s>",
    ]
    assert [trained_texts(tokenizer, sequence) for sequence in sequences] == [[" A</s>"], [" B</s>"]]
    for sequence, turn in zip(sequences, (2, 4), strict=True):
        [run] = runs(sequence)
        assert list(sequence.ids[: run.start]) == seen_at_inference(tokenizer, list(item.messages[:turn]))


def test_a_template_that_moves_nothing_without_a_system_turn_makes_one_sequence():
    tokenizer = tiny_tokenizer("mistral-system-last")
    [sequence] = encoded(tokenizer, record("q", "A", "r", "B"))
    assert trained_texts(tokenizer, sequence) == [" A</s>", " B</s>"]


def test_a_template_that_drops_earlier_reasoning_makes_a_sequence_of_each_turn():
    tokenizer = tiny_tokenizer("qwen3")
    thoughts = [f"<think>\n{thought}\n</think>\n\n{answer}" for thought, answer in (("hm", "A"), ("ho", "B"))]
    item = record("q", thoughts[0], "r", thoughts[1])
    first, second = encoded(tokenizer, item)
    assert trained_texts(tokenizer, first) == [thoughts[0] + "<|im_end|>"]
    assert trained_texts(tokenizer, second) == [thoughts[1] + "<|im_end|>"]
    assert "hm" not in tokenizer.decode(second.ids)
    for sequence, turn in ((first, 1), (second, 3)):
        [run] = runs(sequence)
        assert list(sequence.ids[: run.start]) == seen_at_inference(tokenizer, list(item.messages[:turn]))


def refusal(tokenizer: Any, item: Record, **settings: Any) -> str:
    with pytest.raises(RecordError) as caught:
        encoded(tokenizer, item, **settings)
    return f"{caught.value.field}: {caught.value}"


def test_a_template_that_shows_the_prompt_otherwise_than_the_chat_is_refused():
    # v0.3 drops the system turn as soon as the chat ends in an answer
    said = refusal(tiny_tokenizer("mistral-v3"), record("q", "A", system="Be short."))
    assert said == "messages[2]: the chat template does not render a prompt as the turn's beginning"


@pytest.mark.parametrize("ending", ["", "\n", " END", "<|im_end|> END"])
def test_a_template_without_an_end_token_is_refused(ending: str):
    tokenizer = tiny_tokenizer("smollm2")
    tokenizer.chat_template = (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
        "{% if message['role'] == 'assistant' %}" + ending + "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    said = refusal(tokenizer, record("a", "b"))
    assert said == "messages: the chat template ends the assistant's turn without a special token"


def test_no_template_is_refused_with_the_key_that_gives_one():
    assert "data.chat_template" in refusal(tiny_tokenizer(None), record("a", "b"))


def test_a_chat_that_its_template_refuses_is_a_bad_record_with_the_templates_reason():
    messages = tuple({"role": role, "content": "x"} for role in ("user", "user", "assistant"))
    said = refusal(tiny_tokenizer("mistral"), Chat(messages))
    assert said.startswith("messages: the chat template refuses it: Conversation roles must alternate")


def test_a_message_that_its_template_cannot_render_is_a_bad_record():
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    assert "the chat template refuses it" in refusal(tiny_tokenizer("smollm2"), Chat((call,) * 2), train_on="all")


@pytest.mark.parametrize("name", ["smollm2", "mistral", "qwen2_5"])
def test_a_chat_that_the_assistant_opens_is_refused(name: str):
    messages = tuple({"role": role, "content": "x"} for role in ("assistant", "user", "assistant"))
    assert refusal(tiny_tokenizer(name), Chat(messages)).startswith("messages[0]: the assistant speaks first")


def test_a_chat_needs_a_tokenizer_that_knows_places_in_the_text():
    class Slow:
        """A tokenizer in Python."""

        is_fast = False
        eos_token_id, bos_token_id, all_special_ids, added_tokens_decoder, chat_template = 1, None, [1], {}, "x"

        def apply_chat_template(self, messages: list[Message], **_: Any) -> str:
            return "".join(message["content"] for message in messages)

    assert refusal(Slow(), record("a", "b")) == "messages: chats need a fast tokenizer (one with a tokenizer.json)"


BOS = [("smollm2", False), ("qwen2_5", False), ("llama3", False), ("llama3", True), ("mistral", True)]


@pytest.mark.parametrize(("name", "add_bos"), BOS)
def test_a_tokenizer_that_adds_a_bos_is_known(name: str, add_bos: bool):
    assert adds_bos(tiny_tokenizer(name, add_bos=add_bos)) is add_bos


@pytest.mark.parametrize(("name", "add_bos"), BOS)
@pytest.mark.parametrize("train_on", ["all", "assistant"])
def test_no_chat_has_two_bos_and_one_where_the_template_writes_it(name: str, add_bos: bool, train_on: str):
    # Llama 3 and Mistral write the BOS themselves, SmolLM2's turns begin with what it calls its BOS, Qwen has none
    tokenizer = tiny_tokenizer(name, add_bos=add_bos)
    [sequence] = encoded(tokenizer, record("a", "b"), train_on=train_on)
    if tokenizer.bos_token_id is not None:
        assert sequence.ids[0] == tokenizer.bos_token_id != sequence.ids[1]
    assert sequence.trained[0] == 0


@pytest.mark.parametrize(("name", "add_bos"), BOS)
def test_a_text_begins_with_one_bos_where_the_tokenizer_adds_it_and_ends_with_an_eos(name: str, add_bos: bool):
    tokenizer = tiny_tokenizer(name, add_bos=add_bos)
    [sequence] = encoded(tokenizer, Text("some text"), train_on="all")
    plain = tokenizer("some text", add_special_tokens=False)["input_ids"]
    assert list(sequence.ids) == [tokenizer.bos_token_id] * add_bos + plain + [tokenizer.eos_token_id]
    assert list(sequence.trained) == [0] + [1] * (len(sequence.ids) - 1)


@pytest.mark.parametrize("name", ["smollm2", "llama3", "mistral"])
def test_the_name_of_a_special_token_in_a_text_is_text(name: str):
    tokenizer = tiny_tokenizer(name, add_bos=name != "smollm2")
    text = f"{tokenizer.bos_token}<html><s>struck</s><|im_end|>{tokenizer.eos_token} end"
    [sequence] = encoded(tokenizer, Text(text), train_on="all")
    inner = sequence.ids[int(adds_bos(tokenizer)) : -1]
    assert not set(inner.tolist()) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(inner) == text


def test_a_text_after_a_chat_and_a_chat_after_a_text_are_encoded_as_ever():
    # the backend is told for each of them whether the name of a special token is one
    encoder = Encoder(tiny_tokenizer("smollm2"), rules())
    texts, chats = [], []
    for _ in range(2):
        texts.append(encoder.encode(Text("<|im_end|>"))[0].ids.tolist())
        chats.append(encoder.encode(record("a", "b"))[0].ids.tolist())
    assert texts[0] == texts[1] and chats[0] == chats[1]
    assert encoder.eos in chats[0] and encoder.eos not in texts[0][:-1]


def labels(sequence: TokenSequence) -> list[int]:
    return [int(token) for token, trained in zip(sequence.ids, sequence.trained, strict=True) if trained]


@pytest.mark.parametrize("add_bos", [False, True])
def test_windows_lose_no_token_and_make_each_a_label_once(add_bos: bool):
    tokenizer = tiny_tokenizer("llama3", add_bos=add_bos)
    whole = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    chance = random.Random(0)
    for _ in range(200):
        limit, start = chance.randint(8, 40), chance.randint(0, len(TEXT) - 90)
        text = TEXT[start : start + chance.randint(1, 90)] + "."
        body = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        windows = encoded(tokenizer, Text(text), train_on="all", length=limit)
        # the first token is a label only where a BOS precedes it; every other token is one exactly once
        assert [label for window in windows for label in labels(window)] == (body if add_bos else body[1:])
        head = [tokenizer.bos_token_id] * add_bos
        for window in windows:
            assert len(window.ids) <= limit
            assert window.ids[: len(head)].tolist() == head
            assert window.trained[0] == 0 and window.trained.any()
        for before, after in pairwise(windows):
            assert len(before.ids) == limit, "only the last window is shorter"
            assert after.ids[len(head)] == before.ids[-1], "the first token of a window is context for the second"
            assert list(after.trained[: len(head) + 1]) == [0] * (len(head) + 1)
    assert len(whole) > 40


@pytest.mark.parametrize("add_bos", [False, True])
@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_a_text_of_about_one_window_is_split_only_where_it_must(add_bos: bool, offset: int):
    tokenizer = tiny_tokenizer("llama3", add_bos=add_bos)
    text = "x" * 30
    count = len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1 + add_bos  # with the EOS and the BOS
    windows = encoded(tokenizer, Text(text), train_on="all", length=count + offset)
    assert len(windows) == (2 if offset < 0 else 1)


def test_a_long_text_is_tokenised_in_pieces_without_losing_a_character(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(encode, "PIECE_CHARACTERS", 16)
    tokenizer = tiny_tokenizer("smollm2")
    text = "0123456\n89\n" * 5 + "x" * 40 + "\n\nend"  # a line longer than a piece is cut in its middle
    [sequence] = encoded(tokenizer, Text(text), train_on="all")
    assert tokenizer.decode(sequence.ids[:-1]) == text


def test_a_chat_in_a_pretraining_corpus_is_trained_on_whole_and_in_windows():
    tokenizer = tiny_tokenizer("smollm2")
    text = tokenizer.apply_chat_template(list(record("a", "b").messages), tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    windows = encoded(tokenizer, record("a", "b"), train_on="all", length=16)
    assert [label for window in windows for label in labels(window)] == ids[1:]
    assert len(windows) > 1


def length_of(tokenizer: Any, item: Chat) -> int:
    return len(encoded(tokenizer, item)[0].ids)


@pytest.mark.parametrize("on_long_chat", ["error", "skip", "cut"])
def test_a_chat_that_fits_exactly_is_left_as_it_is(on_long_chat: str):
    tokenizer, item = tiny_tokenizer("smollm2"), record("a", "b")
    [sequence] = encoded(tokenizer, item, length=length_of(tokenizer, item), on_long_chat=on_long_chat)
    assert not sequence.cut


@pytest.mark.parametrize("on_long_chat", ["error", "skip"])
def test_a_chat_that_is_too_long_is_refused_with_both_lengths(on_long_chat: str):
    tokenizer, item = tiny_tokenizer("smollm2"), record("a", "b")
    length = length_of(tokenizer, item)
    with pytest.raises(LongChat, match=f"the chat has {length} tokens, data.sequence_length is {length - 1}"):
        encoded(tokenizer, item, length=length - 1, on_long_chat=on_long_chat)


def test_a_chat_that_is_too_long_is_cut_at_its_end_where_the_job_says_so():
    tokenizer, item = tiny_tokenizer("smollm2"), record("a", "b", "c", "a long answer")
    [whole] = encoded(tokenizer, item)
    limit = len(whole.ids) - 4
    [sequence] = encoded(tokenizer, item, length=limit, on_long_chat="cut")
    assert sequence.cut
    assert sequence.ids.tolist() == whole.ids[:limit].tolist()
    assert sequence.trained.tolist() == whole.trained[:limit].tolist()


def test_a_chat_with_nothing_left_to_train_on_is_refused_not_cut():
    tokenizer, item = tiny_tokenizer("smollm2"), record("a", "b")
    start = runs(encoded(tokenizer, item)[0])[0].start
    with pytest.raises(LongChat, match="nothing left to train on"):
        encoded(tokenizer, item, length=start, on_long_chat="cut")
    assert encoded(tokenizer, item, length=start + 1, on_long_chat="cut")[0].trained.sum() == 1


def test_a_pad_token_that_equals_the_end_token_is_harmless():
    one, other = tiny_tokenizer("qwen2_5"), tiny_tokenizer("qwen2_5")
    other.pad_token = other.eos_token
    assert one.pad_token_id != one.eos_token_id == other.pad_token_id
    [first], [second] = (encoded(tokenizer, record("a", "b")) for tokenizer in (one, other))
    assert (first.ids.tolist(), first.trained.tolist()) == (second.ids.tolist(), second.trained.tolist())
    assert trained_texts(other, second) == ["b<|im_end|>"]


def test_the_template_of_a_job_replaces_that_of_the_tokenizer():
    tokenizer = tiny_tokenizer("smollm2")
    tokenizer.chat_template = read_template("qwen2_5")
    [sequence] = encoded(tokenizer, record("a", "b"))
    assert "created by Alibaba Cloud" in tokenizer.decode(sequence.ids)


@pytest.mark.parametrize(
    ("sections", "train_on"),
    [
        ({"task": "pretrain"}, "all"),
        ({"task": "sft"}, "assistant"),
        ({"task": "preference"}, "pairs"),
        *(({"task": "preference", "preference": {"kind": kind}}, "pairs") for kind in ("dpo", "orpo", "simpo", "cpo")),
        ({"task": "preference", "preference": {"kind": "kto"}}, "answers"),
    ],
)
def test_the_task_decides_what_is_trained_on(sections: dict[str, Any], train_on: str):
    data = job_data(Path("x"))
    data["data"].update(sequence_length=77, on_long_chat="cut")
    assert EncodingRules.of(TrainingJob.model_validate({**data, **sections})) == EncodingRules(77, train_on, "cut")


def preference(chosen: str, rejected: str, prompt: str = "What is it?") -> Preference:
    made = parse({"prompt": prompt, "chosen": chosen, "rejected": rejected}, None, {})
    assert isinstance(made, Preference)
    return made


def feedback(completion: str, label: bool, prompt: str = "What is it?") -> Feedback:
    made = parse({"prompt": prompt, "completion": completion, "label": label}, None, {})
    assert isinstance(made, Feedback)
    return made


def parts_of(sequence: TokenSequence) -> tuple[list[int], list[int], list[int]]:
    """The ids of the prompt and of each answer."""
    prompt, chosen, rejected = sequence.parts
    assert prompt + chosen + rejected == len(sequence.ids) == len(sequence.trained)
    ids = sequence.ids.tolist()
    return ids[:prompt], ids[prompt : prompt + chosen], ids[prompt + chosen :]


PAIR = preference("A flaw.", "A feature, 🙂.")


@pytest.mark.parametrize("name", ANSWERS)
def test_a_pair_is_its_prompt_as_at_inference_and_two_answers_that_are_trained_on_whole(name: str):
    tokenizer = tiny_tokenizer(name)
    [sequence] = encoded(tokenizer, PAIR, train_on="pairs")
    prompt, chosen, rejected = parts_of(sequence)
    assert prompt == seen_at_inference(tokenizer, list(PAIR.prompt))
    assert tokenizer.decode(chosen) == ANSWERS[name].format("A flaw.")
    assert tokenizer.decode(rejected) == ANSWERS[name].format("A feature, 🙂.")
    assert sequence.trained.tolist() == [0] * len(prompt) + [1] * (len(chosen) + len(rejected))
    assert (str(sequence.ids.dtype), str(sequence.trained.dtype), sequence.cut) == ("int32", "uint8", False)


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("label", [True, False])
def test_a_feedback_is_its_prompt_and_one_answer_that_is_desirable_or_not(name: str, label: bool):
    tokenizer = tiny_tokenizer(name)
    item = feedback("A flaw.", label)
    [sequence] = encoded(tokenizer, item, train_on="answers")
    prompt, answer, second = parts_of(sequence)
    assert prompt == seen_at_inference(tokenizer, list(item.prompt))
    assert tokenizer.decode(answer) == ANSWERS[name].format("A flaw.")
    assert second == []
    assert sequence.trained.tolist() == [0] * len(prompt) + [1] * len(answer)
    assert sequence.desirable is label


def test_where_single_answers_are_wanted_a_pair_is_a_desirable_one_and_an_undesirable_one():
    tokenizer = tiny_tokenizer("smollm2")
    chosen, rejected = encoded(tokenizer, PAIR, train_on="answers")
    for sequence, text, desirable in ((chosen, "A flaw.", True), (rejected, "A feature, 🙂.", False)):
        [alone] = encoded(tokenizer, feedback(text, desirable), train_on="answers")
        assert sequence.ids.tolist() == alone.ids.tolist()
        assert sequence.trained.tolist() == alone.trained.tolist()
        assert (sequence.parts, sequence.desirable) == (alone.parts, desirable)


def test_a_chat_and_a_text_are_of_one_piece():
    for item, train_on in ((record("a", "b"), "assistant"), (Text("a"), "all")):
        assert encoded(tiny_tokenizer("smollm2"), item, train_on=train_on)[0].parts == (0, 0, 0)


def test_of_an_answer_of_several_messages_the_other_speakers_turns_are_not_trained_on():
    tokenizer = tiny_tokenizer("llama3")
    answer = [{"role": role, "content": text} for role, text in (("assistant", "A"), ("user", "q"), ("assistant", "B"))]
    item = parse({"prompt": "What is it?", "chosen": answer, "rejected": "C"}, None, {})
    [sequence] = encoded(tokenizer, item, train_on="pairs")
    # the rejected answer lies behind the chosen one, whose last run goes on in it
    assert trained_texts(tokenizer, sequence) == ["A<|eot_id|>", "B<|eot_id|>C<|eot_id|>"]


@pytest.mark.parametrize(
    ("item", "train_on", "says"),
    [
        (PAIR, "assistant", "a preference record is nothing that this task trains on"),
        (PAIR, "all", "a preference record is nothing that this task trains on"),
        (feedback("A", True), "assistant", "a feedback record is nothing that this task trains on"),
        (feedback("A", True), "all", "a feedback record is nothing that this task trains on"),
        (feedback("A", True), "pairs", "a record without a rival answer is for preference.kind: kto"),
        (record("a", "b"), "pairs", "a chat record is nothing that a preference job trains on"),
        (record("a", "b"), "answers", "a chat record is nothing that a preference job trains on"),
        (Text("a"), "pairs", "a text record is nothing that a preference job trains on"),
        (Text("a"), "answers", "a text record is nothing that a preference job trains on"),
    ],
)
def test_a_record_of_another_task_is_refused(item: Record, train_on: str, says: str):
    assert refusal(tiny_tokenizer("smollm2"), item, train_on=train_on) == f": {says}"


@pytest.mark.parametrize("name", ["llama3", "mistral-v3", "mistral-system-last"])
def test_answers_that_a_template_makes_the_same_are_refused(name: str):
    # these templates take the space around an answer
    with pytest.raises(RecordError) as caught:
        encoded(tiny_tokenizer(name), preference("A", "A "), train_on="pairs")
    assert (caught.value.field, str(caught.value)) == (
        "chosen",
        "the chosen and the rejected answer are the same tokens",
    )
    assert not isinstance(caught.value, LongChat), "no setting of lengths makes it good"


def test_answers_of_the_same_length_that_differ_are_a_pair():
    [sequence] = encoded(tiny_tokenizer("smollm2"), preference("A", "B"), train_on="pairs")
    _, chosen, rejected = parts_of(sequence)
    assert len(chosen) == len(rejected) and chosen != rejected


def pair_lengths(tokenizer: Any, item: Record) -> tuple[int, int, int]:
    return encoded(tokenizer, item, train_on="pairs")[0].parts


@pytest.mark.parametrize("on_long_chat", ["error", "skip", "cut"])
def test_a_pair_whose_longer_answer_fits_exactly_is_left_as_it_is(on_long_chat: str):
    tokenizer = tiny_tokenizer("smollm2")
    for item in (PAIR, preference("A feature, 🙂.", "A flaw.")):
        prompt, chosen, rejected = pair_lengths(tokenizer, item)
        limit = prompt + max(chosen, rejected)  # of a prompt with an answer; the pair together is longer
        [sequence] = encoded(tokenizer, item, train_on="pairs", length=limit, on_long_chat=on_long_chat)
        assert (sequence.parts, sequence.cut) == ((prompt, chosen, rejected), False)


@pytest.mark.parametrize("on_long_chat", ["error", "skip"])
@pytest.mark.parametrize("train_on", ["pairs", "answers"])
def test_a_prompt_with_an_answer_that_is_too_long_is_refused_with_both_lengths(on_long_chat: str, train_on: str):
    tokenizer = tiny_tokenizer("smollm2")
    for item in (PAIR, preference("A feature, 🙂.", "A flaw.")):
        prompt, chosen, rejected = pair_lengths(tokenizer, item)
        length = prompt + max(chosen, rejected)
        with pytest.raises(LongChat) as caught:
            encoded(tokenizer, item, train_on=train_on, length=length - 1, on_long_chat=on_long_chat)
        assert caught.value.field == "prompt"
        says = f"the prompt with its longer answer has {length} tokens, data.sequence_length is {length - 1}"
        assert str(caught.value) == says


LONG_PROMPT = preference("A flaw of it.", "No.", prompt="What is it? " * 20)
LONG_ANSWERS = preference("x" * 200, "y" * 90, prompt="Why?")


@pytest.mark.parametrize(("name", "add_bos"), [("llama3", True), ("mistral", True), ("qwen2_5", False)])
def test_a_long_prompt_loses_its_beginning_but_not_its_bos_and_both_answers_stay_whole(name: str, add_bos: bool):
    tokenizer = tiny_tokenizer(name, add_bos=add_bos)
    [whole] = encoded(tokenizer, LONG_PROMPT, train_on="pairs")
    prompt, chosen, rejected = parts_of(whole)
    limit = 60
    [sequence] = encoded(tokenizer, LONG_PROMPT, train_on="pairs", length=limit, on_long_chat="cut")
    kept, kept_chosen, kept_rejected = parts_of(sequence)
    assert sequence.cut
    assert (kept_chosen, kept_rejected) == (chosen, rejected)
    assert len(kept) == limit - max(len(chosen), len(rejected)) < len(prompt)
    head = [tokenizer.bos_token_id] * add_bos
    assert kept == head + prompt[len(prompt) - len(kept) + len(head) :]
    assert kept.count(tokenizer.bos_token_id) == add_bos
    assert sequence.trained.tolist() == [0] * len(kept) + [1] * (len(chosen) + len(rejected))


def test_two_long_answers_are_cut_at_the_same_place():
    tokenizer = tiny_tokenizer("llama3")
    [whole] = encoded(tokenizer, LONG_ANSWERS, train_on="pairs")
    prompt, chosen, rejected = parts_of(whole)
    limit = len(prompt) + 60
    assert 60 < len(rejected) < len(chosen) and len(prompt) < limit // 2
    [sequence] = encoded(tokenizer, LONG_ANSWERS, train_on="pairs", length=limit, on_long_chat="cut")
    assert parts_of(sequence) == (prompt, chosen[:60], rejected[:60])
    assert sequence.cut


@pytest.mark.parametrize("item", [feedback("A flaw.", True, prompt="Why? " * 40), feedback("x" * 200, False)])
def test_a_single_answer_is_cut_as_that_of_a_pair(item: Feedback):
    tokenizer, limit = tiny_tokenizer("llama3", add_bos=True), 64
    [sequence] = encoded(tokenizer, item, train_on="answers", length=limit, on_long_chat="cut")
    prompt, answer, _ = parts_of(sequence)
    assert len(prompt) + len(answer) == limit and sequence.cut
    assert prompt[0] == tokenizer.bos_token_id
    assert prompt[1:] == seen_at_inference(tokenizer, list(item.prompt))[1 - len(prompt) :]
    assert sequence.trained.tolist() == [0] * len(prompt) + [1] * len(answer)
    assert sequence.desirable is item.desirable


def test_where_single_answers_are_wanted_too_a_pair_that_a_template_makes_the_same_is_refused():
    with pytest.raises(RecordError, match="the chosen and the rejected answer are the same tokens"):
        encoded(tiny_tokenizer("llama3"), preference("A", "A "), train_on="answers")


@pytest.mark.parametrize("item", [LONG_PROMPT, preference("x" * 200, "No.", prompt="Why? " * 40)])
def test_where_single_answers_are_wanted_too_both_of_a_pair_are_cut_at_the_same_place(item: Preference):
    tokenizer = tiny_tokenizer("llama3", add_bos=True)
    [pair] = encoded(tokenizer, item, train_on="pairs", length=64, on_long_chat="cut")
    prompt, chosen, rejected = parts_of(pair)
    both = encoded(tokenizer, item, train_on="answers", length=64, on_long_chat="cut")
    assert [parts_of(sequence) for sequence in both] == [(prompt, chosen, []), (prompt, rejected, [])]


def test_answers_that_are_the_same_once_they_are_cut_are_refused_as_too_long():
    tokenizer = tiny_tokenizer("llama3")
    item = preference("x" * 90 + "A", "x" * 90 + "B", prompt="Why?")
    prompt, _, _ = pair_lengths(tokenizer, item)
    with pytest.raises(LongChat) as caught:
        encoded(tokenizer, item, train_on="pairs", length=prompt + 40, on_long_chat="cut")
    says = f"cut to {prompt + 40} tokens, the two answers are the same"
    assert (caught.value.field, str(caught.value)) == ("chosen", says)
