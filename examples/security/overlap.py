"""Decides which passages are said once, are new to training, or are boilerplate. Knows no source and no file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable

from entities import Entity, Passage

Keep = Callable[[Passage], bool]

RUN_WORDS = 13  # the length of run by which GPT-3 measured how test and training text overlap (arXiv 2005.14165, C)
MAX_GIVERS = 3


def once() -> Keep:
    """Return a test that accepts each statement the first time only: no paragraph is to be learned fifty times."""
    said: set[str] = set()

    def keep(passage: Passage) -> bool:
        if not passage.is_statement:
            return True
        new = passage.body not in said
        said.add(passage.body)
        return new

    return keep


def said_nowhere(known: Iterable[Entity]) -> Keep:
    """Return a test that refuses a statement when a fifth of its 13-word runs stand in the text of known entities.

    Weaknesses share whole paragraphs with small changes, and what training has read is no measure of the unseen. Nor
    are the sentences of names, which this example writes itself: it refuses those too.
    """
    said = {run for entity in known for passage in entity.statements() for run in runs_of(passage.body)}

    def keep(passage: Passage) -> bool:
        if not passage.is_statement:
            return not passage.mentions
        runs = runs_of(passage.body)
        return sum(run in said for run in runs) < len(runs) / 5

    return keep


def not_boilerplate(entities: Iterable[Entity]) -> Keep:
    """Return a test that refuses what more than three entities would answer in the same words."""
    givers = Counter(p.body for e in entities for q in e.questions for p in q.passages if p.is_statement)
    return lambda passage: givers[passage.body] <= MAX_GIVERS


def said_by_few(entities: Iterable[Entity]) -> Keep:
    """Return a test that accepts a statement unless more than three entities say a fifth of its 13-word runs.

    So it sees boilerplate behind small changes. What is no statement it refuses.
    """
    sayers = Counter(run for e in entities for run in {run for p in e.statements() for run in runs_of(p.body)})

    def keep(passage: Passage) -> bool:
        runs = runs_of(passage.body)
        return passage.is_statement and sum(sayers[run] > MAX_GIVERS for run in runs) < len(runs) / 5

    return keep


def runs_of(text: str, words_each: int = RUN_WORDS) -> list[str]:
    """Return each run of so many words of the text, or the whole text when it is shorter."""
    words = re.findall(r"\w+", text.lower())
    return [" ".join(words[i : i + words_each]) for i in range(max(1, len(words) - words_each + 1))]
