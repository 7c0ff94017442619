"""A score by a regular expression: what it finds in an answer is what it finds in the known one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from velocity.evaluation.scores.score import Reference, Score, known


def pattern(expression: str) -> Score:
    """1 where the first find in the answer is the first find in a known one, else 0.

    A find is the first group, or the whole of it where the expression has none. Where no known answer has a find, it is
    enough that the answer has one: the expression then says what an answer looks like.
    """
    compiled = re.compile(expression)

    def find(text: str) -> str | None:
        match = compiled.search(text)
        if match is None:
            return None
        return match[1] if compiled.groups and match[1] is not None else match[0]

    def score(completion: str, reference: Reference, row: Mapping[str, Any], /) -> float:
        found = find(completion)
        wanted = {one for one in map(find, known(reference)) if one is not None}
        return float(found is not None and (not wanted or found in wanted))

    return score
