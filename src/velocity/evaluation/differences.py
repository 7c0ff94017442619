"""What two models differ by on the rows that both have, in numbers with intervals and in words. It knows no file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from velocity.evaluation.measures import Measure, measures_of
from velocity.evaluation.words import Unit, said
from velocity.intervals import Interval, paired_mean, paired_ratio, seed_of

Row: TypeAlias = Mapping[str, Any]  # a line of rows/NAME.jsonl

UNITS: dict[str, Unit] = {"perplexity": "percent", "bits_per_byte": "bits"}  # all others are shares: points


def differences(name: str, kind: str, ours: Sequence[Row], theirs: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Ours less theirs in each measure of the set `name`, over the rows that both have (matched by `id`).

    Of a perplexity it is the share of theirs that ours is higher by. Empty where they share no row.

    Perplexities a token are compared only where both models cut the texts into the same numbers of tokens.
    """
    known = {row["id"]: row for row in theirs}
    pairs = [(row, known[row["id"]]) for row in ours if row["id"] in known]
    if not pairs:
        return {}
    mine, yours = (measures_of(kind, rows) for rows in zip(*pairs, strict=True))
    found = {}
    for measure in (measure for measure in mine if measure in yours):
        if measure == "perplexity" and mine[measure].bottom != yours[measure].bottom:
            continue
        interval = difference(mine[measure], yours[measure], seed_of(name, measure, "difference"))
        words = said(interval, len(pairs), better=mine[measure].better, unit=UNITS.get(measure, "points"))
        bounds = {"difference": interval.value, "low": interval.low, "high": interval.high}
        found[measure] = {**bounds, "rows": len(pairs), "words": words}
    return found


def difference(ours: Measure, theirs: Measure, seed: int) -> Interval:
    """Ours less theirs; both have the same rows in the same order, which are drawn together."""
    if ours.bottom is None or theirs.bottom is None:
        return paired_mean(ours.top, theirs.top, seed)
    return paired_ratio((ours.top, ours.bottom), (theirs.top, theirs.bottom), seed, ours.change)
