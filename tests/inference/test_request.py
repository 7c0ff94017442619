"""A row's random numbers: decided by the job's seed, the row's content, the sample and the step, and nothing else."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from velocity.inference.request import Completion, seed_of, uniform


def test_a_number_depends_on_seed_and_step_and_is_the_same_in_every_process():
    # BLAKE2b of step 3 keyed by seed 7, each as 8 bytes, is 5a8db07ecfa97cad; of its 64 bits a double holds 53
    assert uniform(7, 3) == (0x5A8DB07ECFA97CAD >> 11) / 2**53
    assert uniform(7, 3) == uniform(7, 3)
    assert len({uniform(seed, step) for seed in range(20) for step in range(20)}) == 400


def test_numbers_fill_the_unit_interval_evenly():
    drawn = np.array([uniform(seed, step) for seed in (0, 1, 2**64 - 1) for step in range(4000)])
    assert drawn.min() >= 0 and drawn.max() < 1
    counts = np.bincount((drawn * 20).astype(int), minlength=20)
    # 12,000 draws: 600 in each twentieth; chi-square with 19 degrees of freedom is below 43.8 in 999 of 1,000 cases
    assert float(((counts - 600) ** 2 / 600).sum()) < 43.8


@pytest.mark.parametrize("gap", [1, 2])
def test_neighbouring_steps_and_seeds_are_not_correlated(gap: int):
    by_step = np.array([uniform(5, step) for step in range(3000)])
    by_seed = np.array([uniform(seed, 5) for seed in range(3000)])
    for drawn in (by_step, by_seed):  # a correlation of 3,000 pairs by chance: standard deviation 1/sqrt(3000) = 0.018
        assert abs(float(np.corrcoef(drawn[:-gap], drawn[gap:])[0, 1])) < 5 * 0.018


def test_a_rows_seed_differs_by_job_row_and_sample_and_fits_eight_bytes():
    seeds = [seed_of(seed, row, sample) for seed, row, sample in itertools.product((0, 1), ("a1", "a1-1"), (0, 1, 10))]
    assert len(set(seeds)) == 12
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert seed_of(0, "a1", 0) == seeds[0]


def test_completions_do_not_share_their_lists():
    one, other = Completion(), Completion()
    one.ids.append(1)
    one.logps.append(0.0)
    assert (other.ids, other.logps, other.finish, other.error) == ([], [], "length", None)
