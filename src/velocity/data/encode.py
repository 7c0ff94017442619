"""Records to sequences: token ids and which of them are trained on. It knows no file and no rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from velocity.config.objective import KTOConfig
from velocity.config.training import TrainingJob
from velocity.data.answers import encode_answers, fit
from velocity.data.records import Chat, Feedback, Message, Preference, Record, RecordError, Text
from velocity.data.turns import Ids, Mask, Turns

PIECE_CHARACTERS = 1 << 22  # longer texts are tokenised in pieces that end at a line's end, to bound memory


@dataclass(frozen=True)
class TokenSequence:
    """Token ids, and for each whether it is trained on (`trained[0]` is 0: nothing precedes it).

    `parts` are the lengths of a prompt, its answer, and its second answer (0 where there is none); all are 0 where the
    sequence is of one piece. `desirable` says whether an answer without a rival is.
    """

    ids: Ids
    trained: Mask
    cut: bool = False
    parts: tuple[int, int, int] = (0, 0, 0)
    desirable: bool = True


@dataclass(frozen=True)
class EncodingRules:
    """What of a job decides how a record is encoded; part of the cache's key."""

    sequence_length: int
    train_on: str  # "all" tokens, the "assistant"'s, both answers of "pairs", or single "answers"
    on_long_chat: str

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats of records that are trained on, and looked for where a source names none."""
        compared = {"pairs": ("preference",), "answers": ("preference", "feedback")}
        return compared.get(self.train_on, ("chat", "prompt_completion", "text"))

    @classmethod
    def of(cls, job: TrainingJob) -> EncodingRules:
        """The rules that a job sets."""
        answers = "answers" if isinstance(job.preference, KTOConfig) else "pairs"
        train_on = {"pretrain": "all", "sft": "assistant", "preference": answers}[job.task]
        return cls(job.data.sequence_length, train_on, job.data.on_long_chat)


class LongChat(RecordError):
    """A chat, or a prompt with an answer, of more tokens than a sequence may have."""


class Encoder:
    """Encodes records with one tokenizer; raises RecordError for a record that cannot be trained on."""

    def __init__(self, tokenizer: Any, rules: EncodingRules) -> None:
        self.rules, self.turns = rules, Turns(tokenizer)
        self.eos = tokenizer.eos_token_id
        self.bos = tokenizer.bos_token_id if adds_bos(tokenizer) else None

    def encode(self, record: Record) -> list[TokenSequence]:
        """The record's sequences.

        Windows of a text; a chat (one a turn, if its template rewrites earlier turns); a pair; or its two answers.
        """
        wanted = self.rules.train_on
        if isinstance(record, (Preference, Feedback)) != (wanted in ("pairs", "answers")):
            task = "a preference job" if wanted in ("pairs", "answers") else "this task"
            raise RecordError("", f"a {type(record).__name__.lower()} record is nothing that {task} trains on")
        if isinstance(record, Text):
            return self._text(record.text)
        if isinstance(record, Chat):
            if wanted == "all":
                return list(self._windows(self.turns.ids(self.turns.render(record.messages))))
            return [self._fit(sequence) for sequence in self._chat(record)]
        if isinstance(record, Feedback):
            if wanted == "pairs":
                raise RecordError("", "a record without a rival answer is for preference.kind: kto")
            return [self._answers(record.prompt, [record.completion], desirable=record.desirable)]
        pair = self._answers(record.prompt, [record.chosen, record.rejected])
        return [pair] if wanted == "pairs" else _apart(pair)

    def _text(self, text: str) -> list[TokenSequence]:
        ids = [token for piece in _pieces(text) for token in self.turns.ids(piece, plain=True)]
        if self.eos is not None:
            ids.append(self.eos)
        return list(self._windows(ids))

    def _windows(self, ids: Sequence[int]) -> Iterator[TokenSequence]:
        """Windows that overlap by one token, so that every token is a label exactly once (the first needs a BOS).

        Each window is a sequence of its own, so each begins with a BOS where the model wants one.
        """
        head = [] if self.bos is None else [self.bos]
        body = ids[len(head) :] if list(ids[: len(head)]) == head else ids
        array, step = np.asarray([*head, *body], dtype=np.int32), self.rules.sequence_length - len(head) - 1
        for start in range(0, max(len(body) - 1, 1), step):
            inner = array[len(head) + start : len(head) + start + step + 1]
            window = np.concatenate([array[: len(head)], inner])
            trained = np.ones(len(window), dtype=np.uint8)
            trained[: 1 if start == 0 else len(head) + 1] = 0
            yield TokenSequence(window, trained)

    def _chat(self, chat: Chat) -> list[TokenSequence]:
        messages = chat.messages
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if turns[0] == 0:
            raise RecordError("messages[0]", "the assistant speaks first: there is no prompt that it answers")
        text = self.turns.render(messages)
        spans = [self.turns.span(messages, turn, text) for turn in turns]
        if all(text.startswith(whole) for _, whole in spans):
            return [self._masked(text, [(len(prompt), len(whole)) for prompt, whole in spans])]
        # The template rewrites earlier turns (drops their reasoning, moves the system turn): at inference each turn
        # is written after its own prompt, so each turn becomes a sequence.
        return [self._masked(whole, [(len(prompt), len(whole))]) for prompt, whole in spans]

    def _masked(self, text: str, spans: list[tuple[int, int]]) -> TokenSequence:
        ids, trained = self.turns.masked(text, spans)
        trained[0] = 0
        return TokenSequence(np.asarray(ids, dtype=np.int32), trained)

    def _answers(
        self, prompt: Sequence[Message], answers: Sequence[Sequence[Message]], *, desirable: bool = True
    ) -> TokenSequence:
        ids, encoded = encode_answers(self.turns, prompt, answers)
        length, limit = len(ids) + max(len(answer.ids) for answer in encoded), self.rules.sequence_length
        if cut := length > limit:
            if self.rules.on_long_chat != "cut":
                what = f"the prompt with its longer answer has {length} tokens, data.sequence_length is {limit}"
                raise LongChat("prompt", what)
            ids, encoded = fit(ids, encoded, limit, self.bos)
        if len(encoded) == 2 and np.array_equal(encoded[0].ids, encoded[1].ids):
            raise LongChat("chosen", f"cut to {limit} tokens, the two answers are the same") if cut else _equal()
        trained = np.concatenate([np.zeros(len(ids), dtype=np.uint8), *(answer.trained for answer in encoded)])
        lengths = [len(ids), *(len(answer.ids) for answer in encoded), 0]
        tokens = np.concatenate([ids, *(answer.ids for answer in encoded)])
        return TokenSequence(tokens, trained, cut, (lengths[0], lengths[1], lengths[2]), desirable)

    def _fit(self, sequence: TokenSequence) -> TokenSequence:
        length, limit = len(sequence.ids), self.rules.sequence_length
        if length <= limit:
            return sequence
        if self.rules.on_long_chat != "cut":
            raise LongChat("messages", f"the chat has {length} tokens, data.sequence_length is {limit}")
        trained = sequence.trained[:limit]
        if not trained.any():
            raise LongChat("messages", f"cut to {limit} tokens, the chat has nothing left to train on")
        return TokenSequence(sequence.ids[:limit], trained, cut=True)


def _apart(pair: TokenSequence) -> list[TokenSequence]:
    """The two answers of a pair, each behind the prompt: a desirable and an undesirable one."""
    prompt, chosen, _ = pair.parts
    borders = ((prompt, prompt + chosen), (prompt + chosen, len(pair.ids)))
    return [
        TokenSequence(
            np.concatenate([pair.ids[:prompt], pair.ids[start:end]]),
            np.concatenate([pair.trained[:prompt], pair.trained[start:end]]),
            pair.cut, (prompt, end - start, 0), desirable,
        )
        for (start, end), desirable in zip(borders, (True, False), strict=True)
    ]  # fmt: skip


def _equal() -> RecordError:
    return RecordError("chosen", "the chosen and the rejected answer are the same tokens")


def adds_bos(tokenizer: Any) -> bool:
    """True where the tokenizer itself puts a BOS before a text, so the model expects one."""
    if tokenizer.bos_token_id is None:
        return False
    ids = tokenizer.backend_tokenizer.encode("a").ids if tokenizer.is_fast else tokenizer("a")["input_ids"]
    return list(ids[:1]) == [tokenizer.bos_token_id]


def _pieces(text: str) -> Iterator[str]:
    while len(text) > PIECE_CHARACTERS:
        cut = text.rfind("\n", 0, PIECE_CHARACTERS) + 1 or PIECE_CHARACTERS
        yield text[:cut]
        text = text[cut:]
    yield text
