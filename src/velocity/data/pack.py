"""Sequences into bins of a fixed capacity. Pure: lengths in, groups of indices out.

Best-fit decreasing: arXiv 2404.10830, section 3. No sequence is split.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Groups:
    """Rows of indices, laid end to end: row r is `items[starts[r]:starts[r + 1]]`."""

    items: Indices
    starts: Indices

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> Indices:
        return self.items[self.starts[row] : self.starts[row + 1]]


def one_each(count: int) -> Groups:
    """Every item in a row of its own."""
    return Groups(np.arange(count), np.arange(count + 1))


def best_fit(lengths: NDArray[np.int32], capacity: int) -> Groups:
    """Bins whose lengths sum to at most `capacity`; each item goes where it leaves the least room.

    Among equal lengths the given order decides. Takes about a microsecond an item: the bins with a given room are a
    stack, and the rooms that exist are the bits of one integer.
    """
    rooms: list[list[int]] = [[] for _ in range(capacity + 1)]
    open_rooms = 0
    bin_of = np.empty(len(lengths), dtype=np.int64)
    bins = 0
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    for item, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        fitting = open_rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            chosen = rooms[room].pop()
            if not rooms[room]:
                open_rooms ^= 1 << room
        else:
            chosen, room, bins = bins, capacity, bins + 1
        bin_of[item] = chosen
        if room > length:
            rooms[room - length].append(chosen)
            open_rooms |= 1 << (room - length)
    items = np.argsort(bin_of, kind="stable")
    starts = np.searchsorted(bin_of[items], np.arange(bins + 1))
    return Groups(items, starts)
