"""Text that looks wrong: decoded with another encoding than it was written in, or in a language of its own."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

SHORTEST_BYTES = 200  # of a text that says what language it is in
LONGEST = 2000  # characters of it that are looked at
SURE = 0.95  # code, of which the model is less sure, has no language
NONE = ("und", "zxx")  # ISO 639 for a text whose language cannot be told, and for one that is in none
MOST = 0.9  # of the texts of a set, so that the others are odd
ENOUGH = 10  # texts with a language, from which a set has one
_CONTROLS = re.compile("[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f\x80-\x9f]")  # not tab, line and form feed, escape (colours)


def encoding_fault(text: str) -> str | None:
    """What says that the text was not decoded as it was written; None where nothing does."""
    if "\ufffd" in text:
        return "holds U+FFFD, which stands for bytes that were no text"
    if load_fixer()(text) != text:
        return "reads as if it had been decoded with the wrong encoding (é as Ã©)"
    if found := _CONTROLS.search(text):
        return f"holds the control character U+{ord(found[0]):04X}"
    return None


@cache
def load_fixer() -> Callable[[str], str]:
    """What undoes a wrong decoding; loaded once, before processes fork."""
    from ftfy import fix_encoding

    return fix_encoding


@cache
def load_identifier() -> Any:
    """The model that tells languages; loaded once, before processes fork."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def language_of(text: str) -> str:
    """ISO 639 code of the text's language; empty where it is too short to tell, or has none."""
    text = text[:LONGEST]
    if len(text.encode(errors="replace")) < SHORTEST_BYTES:
        return ""
    language, sure = load_identifier().classify(text)
    return str(language) if sure >= SURE and language not in NONE else ""


def usual(languages: Iterable[str]) -> tuple[str, float] | None:
    """The language of nearly all texts, and the share that has it; None where a set has no such language."""
    counts = Counter(languages)
    counts.pop("", None)
    if counts.total() < ENOUGH:
        return None
    [(language, count)] = counts.most_common(1)
    share = count / counts.total()
    return (language, share) if share >= MOST else None
