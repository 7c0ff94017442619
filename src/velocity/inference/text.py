"""Completions as text: which tokens and which texts end one, and what is shown of it. It knows no model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from velocity.config.inference import GenerationConfig
from velocity.data.tokenizer import turn_ends
from velocity.errors import UserError

BEFORE = 4  # tokens of the prompt that a completion is decoded behind: some tokenizers drop a first space
MARGIN = 4  # tokens that may hold no character of their own


class Spoken:
    """Token ids of completions to text, for one tokenizer and one job."""

    def __init__(self, tokenizer: Any, config: GenerationConfig, model_folder: Path) -> None:
        """UserError where an end token is none of the tokenizer's."""
        self.tokenizer, self.stop = tokenizer, config.stop
        self.ends = frozenset([*_own_ends(tokenizer, model_folder), *_asked_ends(tokenizer, config.end_tokens)])
        self._tail = max((len(text.encode()) for text in config.stop), default=0) + MARGIN

    def stopped(self, ids: Sequence[int]) -> bool:
        """True where a stop string has just appeared."""
        if not self.stop:
            return False
        tail = self._decode(ids[-self._tail :])
        return any(text in tail for text in self.stop)

    def text(self, prompt: Sequence[int], ids: Sequence[int]) -> str:
        """What a completion says: without the token, or from the text on, that ended it."""
        said = list(ids[:-1] if ids and ids[-1] in self.ends else ids)
        before = list(prompt[-BEFORE:])
        head, whole = self._decode(before), self._decode([*before, *said])
        text = whole[len(head) :] if whole.startswith(head) else self._decode(said)
        found = [place for place in (text.find(stop) for stop in self.stop) if place >= 0]
        return text[: min(found)] if found else text

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _own_ends(tokenizer: Any, folder: Path) -> list[int]:
    """Those of the model's generation config, of its tokenizer, and what its template ends an answer with."""
    file = folder / "generation_config.json"
    named = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.is_file() else None
    ends = named if isinstance(named, list) else [] if named is None else [named]
    return [*ends, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]), *turn_ends(tokenizer)]


def _asked_ends(tokenizer: Any, names: Sequence[str]) -> list[int]:
    vocabulary = tokenizer.get_vocab()
    unknown = [name for name in names if name not in vocabulary]
    if unknown:
        what = f"'{unknown[0]}' is no single token of this model"
        raise UserError(what, "generation.end_tokens", "name one of its tokens, or use generation.stop for texts")
    return [int(vocabulary[name]) for name in names]
