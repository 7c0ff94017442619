"""Which rows make up global batch n, and the micro-batches of one rank. A function of data, seed and n alone."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from velocity.batch import Batch
from velocity.config.job import Job
from velocity.data.collate import collate
from velocity.data.encode import Ids, TokenSequence
from velocity.data.mixture import epoch_indices
from velocity.data.pack import Groups, Indices, best_fit, one_each
from velocity.data.store import SequenceStore


class Corpus:
    """Several stores laid end to end, each with its weight."""

    def __init__(self, stores: Sequence[SequenceStore], weights: Sequence[float]) -> None:
        self.stores, self.weights = stores, weights
        self.sizes = [len(store) for store in stores]
        self.lengths: Ids = np.concatenate([np.asarray(store.lengths) for store in stores])
        self._ends = np.cumsum(self.sizes)

    def _find(self, index: int) -> tuple[SequenceStore, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self.stores[number], index - int(self._ends[number]) + self.sizes[number]

    def __getitem__(self, index: int) -> TokenSequence:
        store, inner = self._find(index)
        return store[inner]

    def place(self, index: int) -> str:
        """`file:line` of the record behind a sequence."""
        store, inner = self._find(index)
        return store.place(inner)


@dataclass(frozen=True)
class Share:
    """Which part of a global batch is ours."""

    rank: int = 0
    world_size: int = 1
    micro: int = 1


class TrainLoader:
    """Global batches of a training run, from an endless stream of shuffled epochs."""

    def __init__(self, corpus: Corpus, job: Job, share: Share) -> None:
        self.corpus, self.share, self.seed = corpus, share, job.seed
        self.capacity = job.data.sequence_length if job.data.packing else None
        self.rows = job.batch.rows or (job.batch.tokens or 0) // job.data.sequence_length
        self._starts = [0]  # first row of each epoch in the stream
        self.epoch_rows = functools.lru_cache(maxsize=2)(self._epoch_rows)

    def _epoch_rows(self, epoch: int) -> Groups:
        """The epoch's rows of corpus indices, shuffled."""
        indices = epoch_indices(self.corpus.sizes, self.corpus.weights, self.seed, epoch)
        rows = pack_rows(self.corpus.lengths[indices], self.capacity)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(rows))
        picked = [rows[row] for row in order]
        starts = np.cumsum([0, *map(len, picked)])
        return Groups(indices[np.concatenate(picked)], starts)

    def _start(self, epoch: int) -> int:
        while len(self._starts) <= epoch:
            self._starts.append(self._starts[-1] + len(self.epoch_rows(len(self._starts) - 1)))
        return self._starts[epoch]

    def steps(self, epochs: float) -> int:
        """Optimizer steps that `epochs` take."""
        whole = int(epochs)
        rows = (
            self._start(whole) + (epochs - whole) * len(self.epoch_rows(whole))
            if epochs != whole
            else self._start(whole)
        )
        return math.ceil(rows / self.rows)

    def _row(self, number: int) -> Indices:
        """Row `number` of the stream."""
        epoch = int(np.searchsorted(self._starts, number, side="right")) - 1
        while number >= self._start(epoch + 1):
            epoch += 1
        return self.epoch_rows(epoch)[number - self._start(epoch)]

    def global_batch(self, step: int) -> list[Indices]:
        """The rows that optimizer step `step` sees (from 0), longest first, whatever the number of ranks."""
        rows = [self._row(number) for number in range(step * self.rows, (step + 1) * self.rows)]
        return sorted(rows, key=lambda row: -int(self.corpus.lengths[row].sum()))

    def micro_batches(self, step: int) -> list[Batch]:
        """This rank's part of global batch `step`: the same number of micro-batches on every rank."""
        return list(split(self.corpus, self.global_batch(step), self.share))


def pack_rows(lengths: Ids, capacity: int | None) -> Groups:
    """Bins of `capacity` tokens, or a row a sequence where it is None."""
    return one_each(len(lengths)) if capacity is None else best_fit(lengths, capacity)


def eval_rows(corpus: Corpus, capacity: int | None) -> list[Indices]:
    """Every sequence of an evaluation set once, as rows."""
    rows = pack_rows(corpus.lengths, capacity)
    return [rows[row] for row in range(len(rows))]


def split(corpus: Corpus, rows: Sequence[Indices], share: Share) -> MicroBatches:
    """The micro-batches of one rank; rows are dealt out in turn, so that ranks carry the same load."""
    ours = rows[share.rank :: share.world_size]
    count = math.ceil(math.ceil(len(rows) / share.world_size) / share.micro)
    return MicroBatches(corpus, [ours[i * share.micro : (i + 1) * share.micro] for i in range(count)])


class MicroBatches(Sequence[Batch]):
    """Micro-batches that are made when they are asked for: a large evaluation set never lies in memory as tensors."""

    def __init__(self, corpus: Corpus, parts: Sequence[Sequence[Indices]]) -> None:
        self._corpus, self._parts = corpus, parts

    def __len__(self) -> int:
        return len(self._parts)

    @overload
    def __getitem__(self, index: int) -> Batch: ...

    @overload
    def __getitem__(self, index: slice) -> MicroBatches: ...

    def __getitem__(self, index: int | slice) -> Batch | MicroBatches:
        if isinstance(index, slice):
            return MicroBatches(self._corpus, self._parts[index])
        return _collate(self._corpus, self._parts[index])


def _collate(corpus: Corpus, rows: Sequence[Indices]) -> Batch:
    sequences = [[corpus[int(index)] for index in row] for row in rows]
    return collate(sequences, [corpus.place(int(index)) for row in rows for index in row])
