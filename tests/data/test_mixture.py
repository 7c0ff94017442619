"""An epoch's sequences: each as often as its source's weight says, in an order that seed and epoch alone decide."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from velocity.data.mixture import epoch_indices


def counts(sizes: list[int], weights: list[float], epoch: int = 0, seed: int = 0) -> Counter[int]:
    return Counter(epoch_indices(sizes, weights, seed, epoch).tolist())


def test_weight_one_sees_every_sequence_once():
    assert counts([3, 4], [1, 1]) == dict.fromkeys(range(7), 1)


def test_a_whole_weight_repeats_only_its_own_source():
    assert counts([2, 3], [1, 3]) == {0: 1, 1: 1, 2: 3, 3: 3, 4: 3}


@pytest.mark.parametrize("epoch", range(4))
def test_a_share_sees_that_many_sequences_once_more(epoch: int):
    # 2.5 x 10 = 25: every sequence twice, five of them once more
    seen = counts([10], [2.5], epoch)
    assert sorted(seen.values()) == [2] * 5 + [3] * 5


def test_a_share_moves_on_so_that_whole_epochs_of_it_see_every_sequence_alike():
    # 0.3 x 10 = 3 an epoch: ten epochs see 30, every sequence three times
    total = sum((counts([10], [0.3], epoch) for epoch in range(10)), Counter())
    assert total == dict.fromkeys(range(10), 3)


def test_a_share_of_less_than_one_sequence_is_one():
    # 0.1 x 3 rounds to none; ten epochs of nothing would never end
    for epoch in range(3):
        assert sum(counts([3], [0.1], epoch).values()) == 1
    assert set(counts([3, 5], [0.1, 1])) > {3, 4, 5, 6, 7}


def test_the_order_is_a_function_of_seed_and_epoch():
    orders = {(seed, epoch): tuple(epoch_indices([50, 50], [1, 1], seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(set(orders.values())) == 4
    assert orders[1, 1] == tuple(epoch_indices([50, 50], [1, 1], 1, 1))


def test_sources_are_shuffled_together():
    order = epoch_indices([500, 500], [1, 1], 0, 0)
    first_half = int((order[:500] < 500).sum())
    # of 500 draws without replacement from 1,000, half are of the first source; standard deviation 7.9
    assert abs(first_half - 250) < 40
    assert not np.array_equal(np.sort(order[:500]), np.arange(500))
