"""Records to sequences: token ids and which of them are trained on. It knows no file and no rank.

A chat's mask comes from its template: the text is rendered once, and the assistant's turns are found by rendering
the messages before each of them. Tokenised is the whole text, as inference does, never turn by turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from velocity.config.job import Job
from velocity.data.records import Chat, Message, Record, RecordError, Text
from velocity.data.tokenizer import special_ids

Ids = NDArray[np.int32]
Mask = NDArray[np.uint8]
PIECE_CHARACTERS = 1 << 22  # longer texts are tokenised in pieces that end at a line's end, to bound memory


@dataclass(frozen=True)
class TokenSequence:
    """Token ids, and for each whether it is trained on (`trained[0]` is 0: nothing precedes it)."""

    ids: Ids
    trained: Mask
    cut: bool = False


@dataclass(frozen=True)
class EncodingRules:
    """What of a job decides how a record is encoded; part of the cache's key."""

    sequence_length: int
    train_on: str  # "all" tokens, or the "assistant"'s
    on_long_chat: str

    @classmethod
    def of(cls, job: Job) -> EncodingRules:
        """The rules that a job sets."""
        train_on = "all" if job.task == "pretrain" else "assistant"
        return cls(job.data.sequence_length, train_on, job.data.on_long_chat)


class LongChat(RecordError):
    """A chat of more tokens than a sequence may have, where the job says `error` or `skip`."""


class Encoder:
    """Encodes records with one tokenizer; raises RecordError for a record that cannot be trained on."""

    def __init__(self, tokenizer: Any, rules: EncodingRules) -> None:
        self.tokenizer, self.rules = tokenizer, rules
        self.backend = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        self.eos = tokenizer.eos_token_id
        self.bos = tokenizer.bos_token_id if adds_bos(tokenizer) else None
        self.special = special_ids(tokenizer)

    def encode(self, record: Record) -> list[TokenSequence]:
        """The record's sequences: windows of a text, or a chat (one a turn, if its template rewrites earlier turns)."""
        if isinstance(record, Text):
            return self._text(record.text)
        if self.tokenizer.chat_template is None:
            raise RecordError("messages", "the tokenizer has no chat template; set data.chat_template to a Jinja file")
        if self.rules.train_on == "all":
            return list(self._windows(self._ids(self._render(record.messages), plain=False)))
        return [self._fit(sequence) for sequence in self._chat(record)]

    def _text(self, text: str) -> list[TokenSequence]:
        ids = [token for piece in _pieces(text) for token in self._ids(piece, plain=True)]
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

    def _ids(self, text: str, *, plain: bool) -> list[int]:
        """Token ids; where `plain`, the text of a special token (`<s>` in a page of HTML) is text like any other."""
        if self.backend is None:
            return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=plain)["input_ids"])
        self.backend.encode_special_tokens = plain
        return list(self.backend.encode_batch_fast([text], add_special_tokens=False)[0].ids)

    def _render(self, messages: Sequence[Message], prompt: bool = False) -> str:
        try:
            rendered = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise RecordError("messages", f"the chat template refuses it: {error}") from None
        return str(rendered)

    def _chat(self, chat: Chat) -> list[TokenSequence]:
        messages = chat.messages
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if turns[0] == 0:
            raise RecordError("messages[0]", "the assistant speaks first: there is no prompt that it answers")
        text = self._render(messages)
        spans = [self._span(messages, turn, text) for turn in turns]
        if all(text.startswith(whole) for _, whole in spans):
            return [self._masked(text, [(len(prompt), len(whole)) for prompt, whole in spans])]
        # The template rewrites earlier turns (drops their reasoning, moves the system turn): at inference each turn
        # is written after its own prompt, so each turn becomes a sequence.
        return [self._masked(whole, [(len(prompt), len(whole))]) for prompt, whole in spans]

    def _span(self, messages: Sequence[Message], turn: int, text: str) -> tuple[str, str]:
        """The text before an assistant's turn, and the text up to its end; `text` is that of all messages."""
        prompt = self._render(messages[:turn], prompt=True)
        whole = text if turn == len(messages) - 1 else self._render(messages[: turn + 1])
        if not whole.startswith(prompt):
            prompt = self._render(messages[:turn])
        if not whole.startswith(prompt):
            raise RecordError(f"messages[{turn}]", "the chat template does not render a prompt as the turn's beginning")
        return prompt, whole

    def _masked(self, text: str, spans: list[tuple[int, int]]) -> TokenSequence:
        ids, find = self._with_places(text)
        trained = np.zeros(len(ids), dtype=np.uint8)
        for start, end in spans:
            (first, straddles), (last, _) = find(start, end), find(end, len(text))
            turn = range(first + straddles, last)  # a token across either border is the neighbour's
            ends = [i for i in turn if ids[i] in self.special]
            if not ends or self.tokenizer.decode(ids[ends[-1] + 1 : last]).strip():
                raise RecordError("messages", "the chat template ends the assistant's turn without a special token")
            trained[turn.start : ends[-1] + 1] = 1
        trained[0] = 0
        return TokenSequence(np.asarray(ids, dtype=np.int32), trained)

    def _with_places(self, text: str) -> tuple[list[int], Callable[[int, int], tuple[int, bool]]]:
        """The text's ids, and a function from (place, limit) to the first token that ends behind the place.

        With it comes whether that token begins before the place.
        """
        if self.backend is None:
            raise RecordError("messages", "chats need a fast tokenizer (one with a tokenizer.json)")
        self.backend.encode_special_tokens = False
        encoding = self.backend.encode(text, add_special_tokens=False)
        place, count = encoding.char_to_token, len(encoding.ids)

        def find(start: int, limit: int) -> tuple[int, bool]:
            found = (place(i) for i in range(start, limit))
            token = next((index for index in found if index is not None), count)
            return token, start > 0 and token < count and place(start - 1) == token

        return list(encoding.ids), find

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
