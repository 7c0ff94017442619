"""A row of an evaluation set becomes an item: what is put before the model, and what is scored. It knows no file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from velocity.config.evaluate import AnySet
from velocity.data.answers import Answer, encode_answers, fit
from velocity.data.encode import Encoder, EncodingRules, LongChat
from velocity.data.parse import parse, parse_prompt
from velocity.data.records import Chat, Message, Preference, RecordError, Text
from velocity.data.turns import Ids
from velocity.evaluation.store import Item

OPENING_LETTERS = 500
Augment = Callable[[str], str]  # a question with what stands before it


@dataclass(frozen=True)
class ItemRules:
    """What of a job decides how rows become items; part of the cache's key."""

    sequence_length: int
    on_long_chat: str


class Reader(Protocol):
    """One kind of set."""

    def item(self, row: Any) -> Item:
        """The row's item; RecordError where it is none of this kind."""


def build_reader(source: AnySet, tokenizer: Any, rules: ItemRules, augment: Augment) -> Reader:
    """The reader of a set: the only place here that matches on a kind's name."""
    encoder = Encoder(tokenizer, EncodingRules(rules.sequence_length, "assistant", rules.on_long_chat))
    if source.kind == "perplexity":
        return _Texts(source, encoder)
    asked = _Asked(source, encoder, augment)
    kinds: dict[str, Callable[[_Asked], Reader]] = {"choices": _Choices, "preference": _Pairs, "answers": _Answers}
    return kinds[source.kind](asked)


class _Texts:
    """Windows of a text, or the assistant's turns of a chat: as training scores them."""

    def __init__(self, source: AnySet, encoder: Encoder) -> None:
        self.source, self.encoder = source, encoder

    def item(self, row: Any) -> Item:
        windows = self.encoder.encode(_text_record(self.source, row))
        decode = self.encoder.turns.tokenizer.decode
        sizes = [
            len(str(decode(window.ids[window.trained.astype(bool)], skip_special_tokens=True)).encode())
            for window in windows
        ]
        return Item([], [Answer(window.ids, window.trained) for window in windows], sizes, {})


def _text_record(source: AnySet, row: Any) -> Text | Chat:
    record = parse(row, source.format, source.fields, ("chat", "prompt_completion", "text"))
    assert isinstance(record, Text | Chat), "those formats are"
    return record


def opening(source: AnySet, row: Any) -> str:
    """How a row of a set of texts begins, for those who look at results: of a chat, its turns."""
    record = _text_record(source, row)
    turns = [record.text] if isinstance(record, Text) else [str(turn["content"]) for turn in record.messages]
    text = "\n\n".join(turns)
    return text if len(text) <= OPENING_LETTERS else f"{text[:OPENING_LETTERS]} …"


Question = str | tuple[Message, ...]  # text that is gone on with, or messages that are answered


class _Asked:
    """What questions of all kinds share: plain text where the set says so or the tokenizer has no chat template."""

    def __init__(self, source: AnySet, encoder: Encoder, augment: Augment) -> None:
        self.source, self.encoder, self.augment = source, encoder, augment
        self.turns, self.rules = encoder.turns, encoder.rules
        self.plain = source.format == "text" or self.turns.tokenizer.chat_template is None

    def named(self, row: Any) -> dict[str, Any]:
        """The row with our names for its fields; a question is a prompt."""
        if not isinstance(row, dict):
            raise RecordError("", f"a record is a JSON object, not {type(row).__name__}")
        found = {**row, **{name: row[there] for name, there in self.source.fields.items() if there in row}}
        if "prompt" not in found and "question" in found:
            found["prompt"] = found["question"]
        return found

    def question(self, row: Mapping[str, Any]) -> tuple[Question, str]:
        """What is asked, with what stands before it; and its text as the row has it."""
        prompt = parse_prompt(row, None if self.source.format == "text" else self.source.format, {})
        if isinstance(prompt, Text):
            prompt = ({"role": "user", "content": prompt.text},)
        text = str(prompt[-1]["content"])
        if self.plain:
            told = "\n\n".join(str(message["content"]) for message in prompt)
            return self.augment(told), told
        return (*prompt[:-1], {**prompt[-1], "content": self.augment(text)}), text

    def prompt_ids(self, question: Question) -> list[int]:
        """The tokens that an answer follows."""
        if isinstance(question, str):
            head = [] if self.encoder.bos is None else [self.encoder.bos]
            ids = [*head, *self.turns.ids(question, plain=True)]
        else:
            ids = self.turns.ids(self.turns.render(question, prompt=True))
        if not ids:
            raise RecordError("prompt", "the prompt has no token")
        return ids

    def encoded(self, question: Question, answers: Sequence[str]) -> tuple[Ids, list[Answer]]:
        """The prompt's ids and each answer's, cut to the limit where the job says so."""
        if isinstance(question, str):
            prompt = self.prompt_ids(question)
            ids, options = np.asarray(prompt, dtype=np.int32), [self._plain(question, prompt, one) for one in answers]
        else:
            turns: list[list[Message]] = [[{"role": "assistant", "content": one}] for one in answers]
            ids, options = encode_answers(self.turns, question, turns)
        limit, length = self.rules.sequence_length, len(ids) + max(len(option.ids) for option in options)
        if length > limit:
            self.too_long(length)
            ids, options = fit(ids, options, limit, self.encoder.bos)
        if any(not option.trained.any() for option in options):
            raise RecordError("choices", "one of the answers has no token to score")
        return ids, options

    def _plain(self, question: str, prompt: Sequence[int], answer: str) -> Answer:
        """The tokens that follow the prompt's in the whole text, after a space: as lm-eval cuts them."""
        head = len(prompt) - len(self.turns.ids(question, plain=True))
        whole = self.turns.ids(f"{question} {answer}", plain=True)
        ids = np.asarray(whole[len(prompt) - head :], dtype=np.int32)
        return Answer(ids, np.ones(len(ids), dtype=np.uint8))

    def too_long(self, length: int) -> None:
        """Nothing where the job has long rows cut; else LongChat."""
        if self.rules.on_long_chat != "cut":
            limit = self.rules.sequence_length
            what = f"the prompt with its longest answer has {length} tokens, data.sequence_length is {limit}"
            raise LongChat("prompt", what)


class _Choices:
    """A question with several answers, of which one is right."""

    def __init__(self, asked: _Asked) -> None:
        self.asked = asked

    def item(self, row: Any) -> Item:
        named = self.asked.named(row)
        choices = _texts(named, "choices")
        if len(choices) < 2 or len(set(choices)) < len(choices):
            raise RecordError("choices", "'choices' are at least two answers, each another one")
        return _scored(self.asked, named, choices, _right(named, choices))


class _Pairs:
    """A chosen and a rejected answer."""

    def __init__(self, asked: _Asked) -> None:
        self.asked = asked

    def item(self, row: Any) -> Item:
        record = parse(row, "preference", self.asked.source.fields)
        assert isinstance(record, Preference), "the format says so"
        if len(record.chosen) > 1 or len(record.rejected) > 1:
            raise RecordError("chosen", "an answer of several turns is not scored; give the last turn alone")
        choices = [str(answer[0]["content"]) for answer in (record.chosen, record.rejected)]
        return _scored(self.asked, {"messages": list(record.prompt)}, choices, 0)


class _Answers:
    """A question that the model answers itself, and what it is compared with."""

    def __init__(self, asked: _Asked) -> None:
        self.asked = asked

    def item(self, row: Any) -> Item:
        named = self.asked.named(row)
        references = _references(named)
        question, text = self.asked.question(named)
        ids = self.asked.prompt_ids(question)
        if len(ids) > self.asked.rules.sequence_length:
            self.asked.too_long(len(ids))
            ids = fit(np.asarray(ids, dtype=np.int32), [_NOTHING], self.asked.rules.sequence_length,
                      self.asked.encoder.bos)[0].tolist()  # fmt: skip
        return Item(ids, [], [], {"prompt": text, "reference": references})


_NOTHING = Answer(np.zeros(1, dtype=np.int32), np.zeros(1, dtype=np.uint8))


def _scored(asked: _Asked, named: Mapping[str, Any], choices: Sequence[str], right: int) -> Item:
    question, text = asked.question(named)
    ids, options = asked.encoded(question, choices)
    told = {"prompt": text, "choices": list(choices), "answer": right}
    return Item(ids.tolist(), options, [len(choice.encode()) for choice in choices], told)


def _texts(row: Mapping[str, Any], name: str) -> list[str]:
    value = row.get(name)
    if not isinstance(value, list) or not all(isinstance(one, str) and one.strip() for one in value):
        what = "is missing" if name not in row else "is not a list of texts"
        raise RecordError(name, f"'{name}' {what}")
    return list(value)


def _right(row: Mapping[str, Any], choices: Sequence[str]) -> int:
    """Which choice is right: its number from 0, or its text."""
    answer = row.get("answer")
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return answer
    if isinstance(answer, str) and answer in choices:
        return choices.index(answer)
    raise RecordError("answer", f"'answer' is {answer!r}; give the right choice's number from 0, or its text")


def _references(row: Mapping[str, Any]) -> list[str]:
    """The known answers: a list of them, one of them, or the last turn of a chat."""
    for name in ("references", "reference", "answer"):
        if name in row:
            return _texts({name: row[name] if isinstance(row[name], list) else [row[name]]}, name)
    record = parse(row, None, {}, ("chat", "prompt_completion"))
    assert isinstance(record, Chat), "both formats are chats"
    if record.messages[-1]["role"] != "assistant":
        raise RecordError("messages", "no answer of the assistant ends it: there is nothing to compare with")
    return [str(record.messages[-1]["content"])]
