"""Which rows make up global batch n, and the micro-batches of one rank. A function of data, seed and n alone."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from velocity.batch import Batch
from velocity.config.training import TrainingJob
from velocity.data.corpus import Corpus
from velocity.data.layout import Layout, build_layout
from velocity.data.mixture import epoch_indices
from velocity.data.pack import Groups, Indices, best_fit, one_each
from velocity.data.turns import Ids


@dataclass(frozen=True)
class Share:
    """Which part of a global batch is ours."""

    rank: int = 0
    world_size: int = 1
    micro: int = 1


class TrainLoader:
    """Global batches of a training run, from an endless stream of shuffled epochs."""

    def __init__(self, corpus: Corpus, job: TrainingJob, share: Share) -> None:
        self.corpus, self.share, self.seed = corpus, share, job.seed
        self.layout = build_layout(job)
        self.lengths = self.layout.lengths(corpus)
        self.capacity = job.row_tokens if job.data.packing else None
        self.rows = job.batch.rows or (job.batch.tokens or 0) // job.data.sequence_length
        self._starts = [0]  # first row of each epoch in the stream
        self.epoch_rows = functools.lru_cache(maxsize=2)(self._epoch_rows)

    def _epoch_rows(self, epoch: int) -> Groups:
        """The epoch's rows of corpus indices, shuffled."""
        indices = epoch_indices(self.corpus.sizes, self.corpus.weights, self.seed, epoch)
        rows = pack_rows(self.lengths[indices], self.capacity if self.layout.pack_epoch else None)
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
        return sorted(rows, key=lambda row: -int(self.lengths[row].sum()))

    def seen(self, steps: int) -> Indices:
        """The sequences that a run of so many steps trains on, in their order in the corpus."""
        seen = np.zeros(len(self.lengths), dtype=bool)
        for step in range(steps):
            if seen.all():
                break
            seen[np.concatenate(self.global_batch(step))] = True
        return np.flatnonzero(seen)

    def micro_batches(self, step: int) -> list[Batch]:
        """This rank's part of global batch `step`: the same number of micro-batches on every rank."""
        rows = self.global_batch(step)
        if not self.layout.pack_epoch:
            rows = pack_within(rows, self.lengths, self.capacity)
        return list(split(self.corpus, rows, self.share, self.layout))


def pack_rows(lengths: Ids, capacity: int | None) -> Groups:
    """Bins of `capacity` tokens, or a row a sequence where it is None."""
    return one_each(len(lengths)) if capacity is None else best_fit(lengths, capacity)


def pack_within(rows: Sequence[Indices], lengths: Ids, capacity: int | None) -> list[Indices]:
    """The sequences of some rows in as few rows as hold them, longest first."""
    indices = np.concatenate(rows)
    packed = pack_rows(lengths[indices], capacity)
    made = [indices[packed[row]] for row in range(len(packed))]
    return sorted(made, key=lambda row: -int(lengths[row].sum()))


def eval_rows(corpus: Corpus, layout: Layout, capacity: int | None) -> list[Indices]:
    """Every sequence of an evaluation set once, as rows."""
    rows = pack_rows(layout.lengths(corpus), capacity)
    return [rows[row] for row in range(len(rows))]


def split(corpus: Corpus, rows: Sequence[Indices], share: Share, layout: Layout) -> MicroBatches:
    """The micro-batches of one rank; rows are dealt out in turn, so that ranks carry the same load."""
    ours = rows[share.rank :: share.world_size]
    count = math.ceil(math.ceil(len(rows) / share.world_size) / share.micro)
    return MicroBatches(corpus, [ours[i * share.micro : (i + 1) * share.micro] for i in range(count)], layout)


class MicroBatches(Sequence[Batch]):
    """Micro-batches that are made when they are asked for: a large evaluation set never lies in memory as tensors."""

    def __init__(self, corpus: Corpus, parts: Sequence[Sequence[Indices]], layout: Layout) -> None:
        self.parts = parts  # rows of corpus indices
        self._corpus, self._layout = corpus, layout

    def __len__(self) -> int:
        return len(self.parts)

    @overload
    def __getitem__(self, index: int) -> Batch: ...

    @overload
    def __getitem__(self, index: slice) -> MicroBatches: ...

    def __getitem__(self, index: int | slice) -> Batch | MicroBatches:
        if isinstance(index, slice):
            return MicroBatches(self._corpus, self.parts[index], self._layout)
        return self._layout.collate(self._corpus, self.parts[index])
