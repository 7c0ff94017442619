"""Rows of sequences to a Batch. It knows no file, no seed and no rank."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from velocity.batch import IGNORED, Batch
from velocity.data.encode import TokenSequence


def collate(rows: Sequence[Sequence[TokenSequence]], records: Sequence[str] = ()) -> Batch:
    """One row a list of sequences, padded at the end to the longest row (with id 0: it is never looked at).

    Without rows it is one token that is not trained on: a rank with nothing to do keeps step with the others.
    """
    lengths = tuple(tuple(len(sequence.ids) for sequence in row) for row in rows) or ((1,),)
    shape = (len(lengths), max(map(sum, lengths)))
    ids, positions = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    for b, row in enumerate(rows):
        start = 0
        for sequence in row:
            end = start + len(sequence.ids)
            ids[b, start:end] = sequence.ids
            positions[b, start:end] = np.arange(end - start)
            labels[b, start : end - 1] = np.where(sequence.trained[1:], sequence.ids[1:], IGNORED)
            start = end
    tensors = map(torch.from_numpy, (ids, positions, labels))
    return Batch(next(tensors), next(tensors), next(tensors), lengths, tuple(records))
