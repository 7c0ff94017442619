"""Chats as text and as tokens: the template rendered, the assistant's turns found in it. It knows no limit of length.

A chat's mask comes from its template: the text is rendered once, and the assistant's turns are found by rendering
the messages before each of them. Tokenised is the whole text, as inference does, never turn by turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jinja2
import numpy as np
from numpy.typing import NDArray

from velocity.data.records import Message, RecordError
from velocity.data.tokenizer import special_ids

Ids: TypeAlias = NDArray[np.int32]
Mask: TypeAlias = NDArray[np.uint8]
Span: TypeAlias = tuple[int, int]  # of characters


class Turns:
    """Renders and tokenises with one tokenizer; raises RecordError for messages that cannot be trained on."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.backend = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        self.special = special_ids(tokenizer)

    def ids(self, text: str, *, plain: bool = False) -> list[int]:
        """Token ids; where `plain`, the text of a special token (`<s>` in a page of HTML) is text like any other."""
        if self.backend is None:
            return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=plain)["input_ids"])
        self.backend.encode_special_tokens = plain
        return list(self.backend.encode_batch_fast([text], add_special_tokens=False)[0].ids)

    def render(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        """The template's text; with `prompt`, up to where the assistant begins to answer."""
        if self.tokenizer.chat_template is None:
            raise RecordError("messages", "the tokenizer has no chat template; set data.chat_template to a Jinja file")
        try:
            rendered = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise RecordError("messages", f"the chat template refuses it: {error}") from None
        return str(rendered)

    def span(self, messages: Sequence[Message], turn: int, text: str) -> tuple[str, str]:
        """The text before an assistant's turn, and the text up to its end; `text` is that of all messages."""
        prompt = self.render(messages[:turn], prompt=True)
        whole = text if turn == len(messages) - 1 else self.render(messages[: turn + 1])
        if not whole.startswith(prompt):
            prompt = self.render(messages[:turn])
        if not whole.startswith(prompt):
            raise RecordError(f"messages[{turn}]", "the chat template does not render a prompt as the turn's beginning")
        return prompt, whole

    def masked(self, text: str, spans: Sequence[Span]) -> tuple[list[int], Mask]:
        """The text's ids, and for each whether it belongs to one of the spans, up to the special token that ends it."""
        ids, find = self._with_places(text)
        trained = np.zeros(len(ids), dtype=np.uint8)
        for start, end in spans:
            (first, straddles), (last, _) = find(start, end), find(end, len(text))
            turn = range(first + straddles, last)  # a token across either border is the neighbour's
            ends = [i for i in turn if ids[i] in self.special]
            if not ends or self.tokenizer.decode(ids[ends[-1] + 1 : last]).strip():
                raise RecordError("messages", "the chat template ends the assistant's turn without a special token")
            trained[turn.start : ends[-1] + 1] = 1
        return ids, trained

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
