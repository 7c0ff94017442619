"""Training rows that hold text of an evaluation row: runs of 13 words, as GPT-3 measured it (arXiv 2005.14165, C).

It knows no file. Rows are numbers: those of evaluation and those of training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from velocity.data.inspection.words import Hashes, runs, whole

FEWEST = 5  # words of an evaluation row: fewer say nothing of their own
COMMON = 10  # different rows that hold a run, beyond which it is boilerplate
HALF = 0.5  # of a row's runs, from which their being common is no excuse


@dataclass(frozen=True)
class Hits:
    """What of the evaluation rows a training row holds.

    `runs` are places in the index; `rows` are evaluation rows of which it holds half or more, each with the share.
    `text` tells equal rows.
    """

    runs: NDArray[np.int64]
    rows: list[tuple[int, float]]
    text: int


class EvalIndex:
    """The runs of all evaluation rows. A row that is shorter than a run is a run of its own, of all of its words."""

    def __init__(self, rows: Iterable[Hashes], length: int) -> None:
        self.length, self.lengths = length, {length}
        self.first: dict[int, int] = {}  # of equal rows: the number of the first
        self.twins: dict[int, list[int]] = {}
        self.totals: dict[int, int] = {}
        parts = [found for number, words_N in enumerate(rows) if (found := self._add(number, words_N)) is not None]
        keys = np.concatenate([np.zeros(0, dtype=np.uint64), *(found for _, found in parts)])
        owners = np.repeat([number for number, _ in parts], [len(found) for _, found in parts]).astype(np.int64)
        order = np.argsort(keys, kind="stable")
        keys, starts, counts = np.unique(keys[order], return_index=True, return_counts=True)
        few = counts <= COMMON
        self.keys, self._starts, self._counts, self._owners = keys[few], starts[few], counts[few], owners[order]

    def _add(self, number: int, words_N: Hashes) -> tuple[int, Hashes] | None:  # noqa: N803 - shape letters
        if len(words_N) < FEWEST:
            return None
        first = self.first.setdefault(whole(words_N), number)
        self.twins.setdefault(first, []).append(number)
        if first != number:
            return None
        length = min(self.length, len(words_N))
        self.lengths.add(length)
        found = runs(words_N, length)
        self.totals[number] = len(found)
        return number, found

    def hits(self, words_N: Hashes) -> Hits | None:  # noqa: N803 - shape letters
        """What a training row with these words holds of the evaluation rows; None where it is nothing."""
        if not len(self.keys):
            return None
        found = np.concatenate([runs(words_N, length) for length in sorted(self.lengths)])
        places = np.searchsorted(self.keys, found)
        places = places[self.keys[np.minimum(places, len(self.keys) - 1)] == found]
        if not len(places):
            return None
        rows = [(row, share) for row, share in self.shares(places.tolist()) if share >= HALF and self.totals[row] > 1]
        return Hits(places.astype(np.int64), rows, whole(words_N))

    def shares(self, places: Sequence[int]) -> list[tuple[int, float]]:
        """The evaluation rows that these runs belong to, each with the share of its runs that they are."""
        spans = [slice(start, start + count) for start, count in self._spans(places)]
        counts = Counter(row for span in spans for row in self._owners[span].tolist())
        return [(row, count / self.totals[row]) for row, count in sorted(counts.items())]

    def _spans(self, places: Sequence[int]) -> Iterator[tuple[int, int]]:
        return zip(self._starts[places].tolist(), self._counts[places].tolist(), strict=True)


@dataclass(frozen=True)
class Overlap:
    """Two rows with text in common: the one looked at, and the one with most of it; the share is of evaluation's."""

    row: int
    other: int
    share: float
    rows: int  # with which it has text in common


class Overlaps:
    """Collects what training rows hold. A run that stands in many different rows is boilerplate, and forgotten."""

    def __init__(self, index: EvalIndex) -> None:
        self.index = index
        self._holders: dict[int, dict[int, list[int]]] = {}  # of a run: texts, and the rows that have the text
        self._halves: dict[int, list[tuple[int, float]]] = {}

    def add(self, row: int, hits: Hits) -> None:
        """Training row `row` holds this."""
        if hits.rows:
            self._halves[row] = hits.rows
        for place in hits.runs.tolist():
            texts = self._holders.setdefault(place, {})
            if len(texts) <= COMMON:  # one more than is allowed is enough to know
                texts.setdefault(hits.text, []).append(row)

    def found(self, least: float) -> tuple[list[Overlap], list[Overlap]]:
        """Of every training row that overlaps, and of every evaluation row.

        An evaluation row does of which so great a share stands in training, in one row or in many; a training row
        does that holds something of such a one.
        """
        shares = self._shares()
        turned: dict[int, dict[int, float]] = {}
        for row, others in shares.items():
            for other, share in others.items():
                turned.setdefault(other, {})[row] = share
        union = dict(self.index.shares([place for place, texts in self._holders.items() if len(texts) <= COMMON]))
        union = {row: max(union.get(row, 0.0), *rows.values()) for row, rows in turned.items()}
        evaluated = [
            Overlap(twin, one.other, union[one.row], one.rows)
            for one in _most({row: turned[row] for row in sorted(turned) if union[row] >= least})
            for twin in self.index.twins[one.row]
        ]
        kept = {
            row: {other: share for other, share in others.items() if union[other] >= least}
            for row, others in shares.items()
        }
        return list(_most({row: others for row, others in kept.items() if others})), evaluated

    def _shares(self) -> dict[int, dict[int, float]]:
        """For each training row, in order, which share it holds of which evaluation rows."""
        held: dict[int, list[int]] = {}
        for place, texts in self._holders.items():
            if len(texts) <= COMMON:
                for row in (row for rows in texts.values() for row in rows):
                    held.setdefault(row, []).append(place)
        shares = {row: dict(self._halves.get(row, [])) for row in sorted({*held, *self._halves})}
        for row, places in held.items():
            for other, share in self.index.shares(places):
                shares[row][other] = max(share, shares[row].get(other, 0.0))
        return shares


def _most(shares: dict[int, dict[int, float]]) -> Iterator[Overlap]:
    for row, others in shares.items():
        best = min(others, key=lambda other: (-others[other], other))
        yield Overlap(row, best, others[best], len(others))
