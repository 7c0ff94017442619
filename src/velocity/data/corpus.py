"""Several stores laid end to end: what a run trains on, or one evaluation set. Shape letters: N sequences."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from velocity.data.encode import TokenSequence
from velocity.data.store import Parts, SequenceStore
from velocity.data.turns import Ids


class Corpus:
    """Random access to all sequences of some sources, each with its weight.

    `reference_N2` holds a reference's log-probabilities of each sequence's two answers, once they are known.
    """

    def __init__(self, stores: Sequence[SequenceStore], weights: Sequence[float]) -> None:
        self.stores, self.weights = stores, weights
        self.sizes = [len(store) for store in stores]
        self.lengths: Ids = np.concatenate([np.asarray(store.lengths) for store in stores])
        self.reference_N2: NDArray[np.float32] | None = None
        self._ends = np.cumsum(self.sizes)

    def _find(self, index: int) -> tuple[SequenceStore, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self.stores[number], index - int(self._ends[number]) + self.sizes[number]

    def __getitem__(self, index: int) -> TokenSequence:
        store, inner = self._find(int(index))
        return store[inner]

    @property
    def parts_N3(self) -> Parts:  # noqa: N802 - shape letters
        """Lengths of the prompt and the answers of every sequence."""
        return np.concatenate([store.parts_N3 for store in self.stores])

    @cached_property
    def prompts_N(self) -> NDArray[np.int64]:  # noqa: N802 - shape letters
        """A number for the prompt of every sequence; equal prompts have equal ones, in this process."""
        prompts = ((self[index], int(length)) for index, length in enumerate(self.parts_N3[:, 0]))
        return np.array([hash(sequence.ids[:length].tobytes()) for sequence, length in prompts], dtype=np.int64)

    def place(self, index: int) -> str:
        """`file:line` of the record behind a sequence."""
        store, inner = self._find(index)
        return store.place(inner)
