"""Rows of pieces to a Batch. It knows no file, no seed, no rank and no objective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from velocity.batch import IGNORED, Answers, Batch
from velocity.data.encode import TokenSequence
from velocity.data.turns import Ids


@dataclass(frozen=True)
class Piece:
    """Tokens that stand together in a row, and the label of each: the token that follows it, or -100.

    `start` is the first one's position. It sees, too, the first `shared` tokens of the latest piece before it that
    shares nothing. The labels are those of answer number `answer`, -1 where there are no answers.
    """

    ids: Ids
    labels: Ids
    start: int = 0
    shared: int = 0
    answer: int = -1


def whole(sequence: TokenSequence) -> Piece:
    """A sequence of one piece."""
    labels = np.full(len(sequence.ids), IGNORED, dtype=np.int32)
    labels[:-1] = np.where(sequence.trained[1:], sequence.ids[1:], IGNORED)
    return Piece(sequence.ids, labels)


def collate(
    rows: Sequence[Sequence[Piece]], records: Sequence[str] = (), answers: dict[str, Any] | None = None
) -> Batch:
    """One row a list of pieces, padded at the end to the longest row (with id 0: it is never looked at).

    Without rows it is one token that is not trained on: a rank with nothing to do keeps step with the others.
    `answers` are the fields of Answers beside those that the pieces tell.
    """
    count = sum(len(row) for row in rows)
    rows = rows or [[Piece(np.zeros(1, dtype=np.int32), np.full(1, IGNORED, dtype=np.int32))]]
    lengths = tuple(tuple(len(piece.ids) for piece in row) for row in rows)
    shape = (len(lengths), max(map(sum, lengths)))
    ids, positions = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    labels, place = np.full(shape, IGNORED, dtype=np.int64), np.full(shape, -1, dtype=np.int64)
    for b, row in enumerate(rows):
        start = 0
        for piece in row:
            end = start + len(piece.ids)
            ids[b, start:end] = piece.ids
            positions[b, start:end] = np.arange(piece.start, piece.start + len(piece.ids))
            labels[b, start:end] = piece.labels
            place[b, start:end] = np.where(piece.labels == IGNORED, -1, piece.answer)
            start = end
    shared = tuple(tuple(piece.shared for piece in row) for row in rows)
    return Batch(
        torch.from_numpy(ids), torch.from_numpy(positions), torch.from_numpy(labels), lengths, tuple(records),
        shared if any(map(any, shared)) else (), None if answers is None else _answers(place, count, answers),
    )  # fmt: skip


def _answers(place: Any, count: int, fields: dict[str, Any]) -> Answers:
    lengths = np.bincount(place[place >= 0], minlength=count)
    return Answers(torch.from_numpy(place), torch.from_numpy(lengths), **fields)
