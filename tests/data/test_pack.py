"""Packing: every sequence once, no bin too full, and the bins of a best-fit that is written to be read."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from numpy.typing import NDArray

from velocity.data.pack import best_fit, one_each


def reference(lengths: list[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing as its definition says: quadratic, and without a doubt."""
    bins: list[list[int]] = []
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        rooms = [capacity - sum(lengths[i] for i in held) for held in bins]
        fitting = [room for room in rooms if room >= lengths[item]]
        if fitting:
            bins[rooms.index(min(fitting))].append(item)
        else:
            bins.append([item])
    return bins


def packed(lengths: list[int] | NDArray[np.int64], capacity: int) -> list[list[int]]:
    groups = best_fit(np.asarray(lengths, dtype=np.int32), capacity)
    return [groups[row].tolist() for row in range(len(groups))]


def test_three_sequences_go_where_they_leave_the_least_room():
    # 6 opens a bin and leaves 4; 5 opens one and leaves 5; 4 fits both and goes where nothing is left over
    assert packed([4, 6, 5], 10) == [[0, 1], [2]]


@pytest.mark.parametrize("seed", range(20))
def test_bins_have_the_fill_of_the_reference(seed: int):
    chance = np.random.default_rng(seed)
    capacity = int(chance.integers(8, 200))
    lengths = chance.integers(1, capacity + 1, size=int(chance.integers(1, 150)))
    bins = packed(lengths, capacity)
    assert sorted(item for held in bins for item in held) == list(range(len(lengths))), "every item once"
    fills = sorted(int(lengths[held].sum()) for held in bins)
    assert fills[-1] <= capacity
    assert fills == sorted(int(lengths[held].sum()) for held in reference(lengths.tolist(), capacity))


def test_efficiency_is_over_95_percent_on_ragged_sequences():
    # lengths as of chats: log-normal with median 90, cut at the capacity of 1,024
    lengths = np.clip(np.random.default_rng(0).lognormal(4.5, 1.0, 5000), 4, 1024).astype(np.int32)
    bins = best_fit(lengths, 1024)
    assert lengths.sum() / (len(bins) * 1024) > 0.95
    assert len(bins) == math.ceil(lengths.sum() / 1024), "no other packing has fewer bins"


def test_a_sequence_as_long_as_a_bin_fills_it_alone():
    assert packed([8, 8, 1], 8) == [[0], [1], [2]]


def test_no_sequences_make_no_bins():
    assert packed([], 8) == []


def test_one_each_puts_every_sequence_into_a_row_of_its_own():
    groups = one_each(3)
    assert [groups[row].tolist() for row in range(len(groups))] == [[0], [1], [2]]


def test_packing_takes_microseconds_a_sequence():
    lengths = np.random.default_rng(0).integers(1, 4096, 100_000).astype(np.int32)
    start = time.perf_counter()
    best_fit(lengths, 4096)
    assert time.perf_counter() - start < 100_000 * 20e-6  # 1 to 2 on a quiet core; quadratic would take minutes
