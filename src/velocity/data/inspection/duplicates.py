"""Rows that say the same: candidates by MinHash (Broder 1997), of which each is compared. It knows no file.

Shape letters: N rows, B bands of a signature.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from velocity.data.inspection.passages import Passage
from velocity.data.inspection.words import Hashes, hashes, mixed, runs, tokens

RUN = 5  # words: what near duplicates of training data are found by in arXiv 2107.06499
PERMUTATIONS = 128
RECALL = 0.98  # of pairs that are just as similar as asked for; of more similar ones it is more
AT_ONCE = 8192  # runs that are permuted together
NEIGHBOURS = 8  # of those with one band in common: the first ones, and those just before


def shingles(text: str) -> Hashes:
    """The runs of 5 words of a text; all of a shorter one is one run."""
    found = hashes(tokens(text))
    return runs(found, min(RUN, max(len(found), 1)))


class Signer:
    """Signatures of texts, cut into bands: of two texts as similar as asked for, nearly all pairs share a band."""

    def __init__(self, similarity: float) -> None:
        # As many values a band as may be, that few other pairs share one: a pair that does costs a comparison.
        fitting = (rows for rows in range(PERMUTATIONS, 0, -1) if _recall(similarity, rows) >= RECALL)
        self.rows = next(fitting)
        self.bands = PERMUTATIONS // self.rows
        from datasketch import MinHash  # imports scipy, for which a job that needs no signature does not wait

        nothing = MinHash(PERMUTATIONS)
        self._empty = partial(MinHash, hashfunc=int, permutations=nothing.permutations, scheme=nothing.scheme)

    def __call__(self, text: str) -> Hashes:
        """A hash of each band."""
        found = shingles(text) >> np.uint64(32)
        made = self._empty()
        for start in range(0, len(found), AT_ONCE):
            made.update_batch(found[start : start + AT_ONCE].tolist())
        values = made.hashvalues[: self.bands * self.rows].reshape(self.bands, self.rows).astype(np.uint64)
        sums = np.arange(self.bands, dtype=np.uint64)
        for column in range(self.rows):
            sums = mixed(sums + values[:, column])
        return sums


def _recall(similarity: float, rows: int) -> float:
    """The chance that two such texts share a band of so many values."""
    return float(1 - (1 - similarity**rows) ** (PERMUTATIONS // rows))


@dataclass(frozen=True)
class Fingerprint:
    """What rows are compared by."""

    exact: bytes
    label: str
    text: Hashes
    answers: tuple[Hashes, ...]

    @classmethod
    def of(cls, passage: Passage) -> Fingerprint:
        """Of one row; spaces and line ends make no difference to it."""
        said = "\0".join(" ".join(part.split()) for part in (passage.text, *passage.answers, passage.label))
        exact = blake2b(said.encode(errors="replace"), digest_size=16).digest()
        return cls(exact, passage.label, shingles(passage.text), tuple(map(shingles, passage.answers)))

    def likeness(self, other: Fingerprint) -> float:
        """The share of runs that both have: the smallest one of the whole text's and of each answer's.

        So questions about one long document are no duplicates of each other. With another label it is 0.
        """
        if self.exact == other.exact:
            return 1.0
        if self.label != other.label or len(self.answers) != len(other.answers):
            return 0.0
        pairs = zip((self.text, *self.answers), (other.text, *other.answers), strict=True)
        return min(_jaccard(one, another) for one, another in pairs)


def _jaccard(one: Hashes, other: Hashes) -> float:
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / max(len(one) + len(other) - both, 1) if len(one) + len(other) else 1.0


def candidates(bands_NB: Hashes) -> dict[int, list[int]]:  # noqa: N803 - shape letters
    """For each row with which it is to be compared: earlier rows, in order."""
    pairs = [pair for band in range(bands_NB.shape[1]) for pair in _pairs(bands_NB[:, band])]
    found: dict[int, list[int]] = {}
    for later, earlier in np.unique(np.concatenate(pairs), axis=0).tolist():
        found.setdefault(later, []).append(earlier)
    return found


def _pairs(band_N: Hashes) -> Iterator[NDArray[np.int64]]:  # noqa: N803 - shape letters
    """Rows with the same value, each with the first few of them and with the few just before it."""
    order = np.argsort(band_N, kind="stable")
    values = band_N[order]
    firsts = np.searchsorted(values, values)  # where the rows with that value begin
    for step in range(NEIGHBOURS):
        later = np.arange(step + 1, len(values))
        later = later[values[later] == values[later - step - 1]]
        yield np.stack([order[later], order[later - step - 1]], axis=1)
        yield np.stack([order[later], order[firsts[later] + step]], axis=1)


@dataclass(frozen=True)
class Copy:
    """A row that says what an earlier one says."""

    row: int
    first: int
    share: float
    exact: bool


class Copies:
    """Compares rows in order; a row is kept, or a copy of one that was kept before."""

    def __init__(self, partners: dict[int, list[int]], similarity: float) -> None:
        self.partners, self.similarity = partners, similarity
        self.wanted = {*partners, *(row for rows in partners.values() for row in rows)}
        self._first: dict[int, int] = {}
        self._kept: dict[int, Fingerprint] = {}

    def add(self, row: int, print_of: Fingerprint) -> Copy | None:
        """What the row is a copy of, the first such row; None where it is none."""
        for earlier in sorted({self._first.get(one, one) for one in self.partners.get(row, [])}):
            kept = self._kept[earlier]
            share = print_of.likeness(kept)
            if share >= self.similarity:
                self._first[row] = earlier
                return Copy(row, earlier, share, print_of.exact == kept.exact)
        self._kept[row] = print_of
        return None
