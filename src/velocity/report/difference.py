"""What differs between two answers, word by word. It knows no page."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

from velocity.report.table import Piece

WORDS = re.compile(r"\s+|\w+|[^\w\s]")
MOST_WORDS = 4000  # of both together: difflib takes their product


def pieces(text: str) -> list[Piece]:
    """The text as it is."""
    return [Piece("same", text)] if text else []


def difference(first: str, second: str) -> list[Piece]:
    """The second text; words that only it has are `ins`, words that only the first has are `del`, in their places."""
    before, after = WORDS.findall(first), WORDS.findall(second)
    if len(before) + len(after) > MOST_WORDS:
        return pieces(second) if first == second else [Piece("del", first), Piece("ins", second)]
    found: list[Piece] = []
    for _, i, j, k, m in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        gone, come = "".join(before[i:j]), "".join(after[k:m])
        if gone == come:
            found.append(Piece("same", come))
        else:
            found += [Piece(kind, text) for kind, text in (("del", gone), ("ins", come)) if text]
    return found
