"""The contract of a score. It knows no model and no file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

Reference: TypeAlias = str | Sequence[str]  # what is known to be right; of several the one that fits best counts


class Score(Protocol):
    """Anything that says how good an answer is."""

    def __call__(self, completion: str, reference: Reference, row: Mapping[str, Any], /) -> float:
        """From 0, wrong, to 1, right; `row` is the row as it was read."""


def best(score: Callable[[str, str], float]) -> Score:
    """A score of one known answer as one of several: the best counts."""

    def of_all(completion: str, reference: Reference, row: Mapping[str, Any], /) -> float:
        return max(score(completion, one) for one in known(reference))

    return of_all


def known(reference: Reference) -> Sequence[str]:
    """The known answers as a list, whatever they come as."""
    return [reference] if isinstance(reference, str) else reference
