"""Intervals: their coverage on simulated data, exact cases, few rows, reproducibility.

Shape letters: N rows.
"""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from velocity.intervals import (
    Interval,
    mean_interval,
    moments,
    paired_mean,
    paired_ratio,
    ratio_interval,
    ratio_interval_of,
    sample_interval,
    seed_of,
    share_interval,
    weighted_interval,
)

Make = Callable[[np.random.Generator, int], Interval]  # an interval of so many simulated rows
RESAMPLES = 300  # fewer than a job's: the coverage hardly knows, the test is quick


def coverage(make: Make, truth: float, rows: int, trials: int) -> float:
    """Return how often the interval of `rows` new rows holds the truth."""
    rng = np.random.default_rng(11)
    held = 0
    for _ in range(trials):
        interval = make(rng, rows)
        assert interval.low is not None and interval.high is not None
        held += interval.low <= truth <= interval.high
    return held / trials


def f1_like(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Half are 0, a quarter 1, the others between: mean 0.375."""
    kind, between = rng.random(rows), rng.beta(2, 2, rows)
    return np.where(kind < 0.5, 0.0, np.where(kind < 0.75, 1.0, between))


def f1(rng: np.random.Generator, rows: int) -> Interval:
    return mean_interval(f1_like(rng, rows), 1, resamples=RESAMPLES)


def rare_f1(rng: np.random.Generator, rows: int) -> Interval:
    """Of which nine in ten are 0: mean 0.05."""
    values = np.where(rng.random(rows) < 0.9, 0.0, rng.beta(2, 2, rows))
    return mean_interval(values, 1, resamples=RESAMPLES)


def f1_gain(rng: np.random.Generator, rows: int) -> Interval:
    """Of two models that find the same rows hard; ours is higher by a tenth of a quarter: 0.025."""
    theirs = f1_like(rng, rows)
    gains = (rng.random(rows) < 0.25) * 0.1
    shift = rng.choice([-0.2, 0.0, 0.2], rows, p=[0.2, 0.6, 0.2])
    return paired_mean(theirs + gains + shift, theirs, 1, resamples=RESAMPLES)


def ragged(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Tokens of texts: median 55, one in forty beyond 390."""
    return np.ceil(rng.lognormal(4, 1, rows))


def perplexity(rng: np.random.Generator, rows: int) -> Interval:
    """Losses a token are skewed, with mean 4 x 0.7 = 2.8 nats."""
    tokens_N = ragged(rng, rows)
    return ratio_interval(tokens_N * rng.gamma(4, 0.7, rows), tokens_N, 1, math.exp, resamples=RESAMPLES)


def perplexity_from_sums(rng: np.random.Generator, rows: int) -> Interval:
    """As training has it: of two ranks, each of which keeps five sums."""
    tokens_N = ragged(rng, rows)
    nats_N = tokens_N * rng.gamma(4, 0.7, rows)
    parts = [moments(nats_N[place::2], tokens_N[place::2]) for place in range(2)]
    return ratio_interval_of(parts[0] + parts[1], math.exp)


def perplexity_change(rng: np.random.Generator, rows: int) -> Interval:
    """Ours is lower by 0.1 nats and a twentieth of theirs, 2.8 in the mean: by 0.24 nats."""
    tokens_N, theirs_N = ragged(rng, rows), rng.gamma(4, 0.7, rows)
    ours_N = 0.95 * theirs_N - 0.1 + 0.2 * rng.standard_normal(rows)
    pairs = ((ours_N * tokens_N, tokens_N), (theirs_N * tokens_N, tokens_N))
    return paired_ratio(*pairs, 1, math.expm1, resamples=RESAMPLES)


SIMULATED: dict[str, tuple[Make, float]] = {
    "f1": (f1, 0.375),
    "rare f1": (rare_f1, 0.05),
    "paired f1": (f1_gain, 0.025),
    "perplexity": (perplexity, math.exp(2.8)),
    "perplexity from sums": (perplexity_from_sums, math.exp(2.8)),
    "paired perplexity": (perplexity_change, math.expm1(-0.24)),
}


@pytest.mark.parametrize("name", SIMULATED)
def test_95_percent_intervals_hold_the_truth_in_93_to_97_percent_of_simulations(name: str):
    make, truth = SIMULATED[name]
    assert 0.93 <= coverage(make, truth, rows=100, trials=1500) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("rows", [373, 874])
@pytest.mark.parametrize("name", SIMULATED)
def test_they_do_so_with_more_rows_too(name: str, rows: int):
    make, truth = SIMULATED[name]
    assert 0.93 <= coverage(make, truth, rows=rows, trials=3000) <= 0.97


@pytest.mark.parametrize("share", [0.44, 0.9])
@pytest.mark.parametrize("rows", [50, 100, 373, 874])
def test_accuracies_are_covered_exactly_in_93_to_97_percent(share: float, rows: int):
    """No simulation is needed: every number of right rows has its probability."""
    right = np.arange(rows + 1)
    held = []
    for count in right:
        interval = mean_interval(np.r_[np.ones(count), np.zeros(rows - count)], 1)
        assert interval.low is not None and interval.high is not None
        held.append(interval.low <= share <= interval.high)
    assert 0.93 <= float(stats.binom.pmf(right, rows, share) @ np.array(held)) <= 0.97


def two_models(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Ours is right in 0.55, theirs in 0.44; three rows in five are as hard for both."""
    hard = rng.random(rows)
    other = np.where(rng.random(rows) < 0.6, hard, rng.random(rows))
    return (hard < 0.55).astype(float), (other < 0.44).astype(float)


def paired_accuracy(rng: np.random.Generator, rows: int) -> Interval:
    return paired_mean(*two_models(rng, rows), 1)


@pytest.mark.parametrize("rows", [50, 100, 373, 874])
def test_differences_of_accuracies_are_covered_in_93_to_97_percent(rows: int):
    assert 0.93 <= coverage(paired_accuracy, 0.11, rows, trials=3000) <= 0.97


def test_half_an_interval_would_be_seen():
    """1.96 / 2 standard errors hold the truth in 67 % of all cases."""

    def halved(rng: np.random.Generator, rows: int) -> Interval:
        found = perplexity(rng, rows)
        assert found.low is not None and found.high is not None
        return Interval(found.value, (found.value + found.low) / 2, (found.value + found.high) / 2)

    assert 0.6 < coverage(halved, math.exp(2.8), rows=100, trials=300) < 0.75


def test_models_that_are_compared_as_if_on_other_rows_would_be_seen():
    def unpaired(rng: np.random.Generator, rows: int) -> Interval:
        tokens_N, theirs_N = ragged(rng, rows), rng.gamma(4, 0.7, rows)
        ours_N = 0.95 * theirs_N - 0.1 + 0.2 * rng.standard_normal(rows)
        order = rng.permutation(rows)
        pairs = ((ours_N * tokens_N, tokens_N), ((theirs_N * tokens_N)[order], tokens_N[order]))
        return paired_ratio(*pairs, 1, math.expm1, resamples=RESAMPLES)

    assert coverage(unpaired, math.expm1(-0.24), rows=100, trials=300) > 0.99


def test_rows_that_are_all_wrong_leave_room_for_some_that_are_not():
    """Jeffreys: the 97.5 % quantile of Beta(1/2, 30 + 1/2)."""
    interval = mean_interval([0.0] * 30, 1)
    assert interval.low == interval.value == 0.0
    assert interval.high == pytest.approx(stats.beta.ppf(0.975, 0.5, 30.5)) == pytest.approx(0.0797, abs=1e-4)


def test_two_models_that_agree_everywhere_may_yet_differ():
    """Bonett and Price with no row that one has alone: p = 1 / 102 each, 1.96 sqrt(2 p / 102) = 2.7 points."""
    interval = paired_mean([1.0] * 60 + [0.0] * 40, [1.0] * 60 + [0.0] * 40, 1)
    assert interval.value == 0.0 and not interval.certain
    reach = 1.96 * math.sqrt(2 / 102 / 102)
    assert (interval.low, interval.high) == pytest.approx((-reach, reach), abs=1e-4)


def test_rows_with_one_score_each_leave_room_for_one_of_forty_to_be_as_bad_as_can_be():
    """Of 30 rows none is another: at most 1 - 0.025 ** (1 / 30) = 11.6 % of all are."""
    interval = mean_interval([0.5] * 30, 1)
    assert interval.low == pytest.approx(0.5 - 0.1157 * 0.5, abs=1e-4)
    assert interval.high == pytest.approx(0.5 + 0.1157 * 0.5, abs=1e-4)


@pytest.mark.parametrize("values", [[0.4], [0.4, 0.6], [0.1, 0.2, 0.6]])
def test_a_handful_of_scores_hardly_narrows_what_they_may_be(values: list[float]):
    interval = mean_interval(values, 1)
    assert interval.low is not None and interval.high is not None
    assert interval.high - interval.low > 0.6


def test_a_perplexity_of_one_text_has_no_interval():
    assert ratio_interval([30.0], [10.0], 1, math.exp) == Interval(math.exp(3.0), None, None)


def test_texts_of_which_one_is_nearly_all_are_worth_one():
    """(1000 + 1 + 1)² / (1000² + 1 + 1) is 1.004 rows."""
    assert ratio_interval([2800.0, 3.0, 2.0], [1000.0, 1.0, 1.0], 1).low is None
    assert ratio_interval_of(moments([2800.0, 3.0, 2.0], [1000.0, 1.0, 1.0])) == Interval(2805 / 1002, None, None)


def test_sums_over_equal_texts_give_the_interval_of_students_t():
    """Of 2, 3 and 4 nats a token: 3 ± 4.303 · 1 / √3."""
    found = ratio_interval_of(moments([20.0, 30.0, 40.0], [10.0] * 3))
    half = 4.30265 / math.sqrt(3)
    assert (found.low, found.value, found.high) == pytest.approx((3 - half, 3.0, 3 + half), abs=1e-4)


@pytest.mark.parametrize("nats", [[], [math.nan, 1.0], [math.inf, 1.0]])
def test_sums_of_nothing_and_of_a_model_that_diverged_have_no_interval(nats: list[float]):
    assert ratio_interval_of(moments(nats, [1.0] * len(nats)), math.exp).low is None


def test_half_a_right_answer_is_between_none_and_one():
    """The quantiles of Beta(5.5 + 1/2, 4.5 + 1/2)."""
    found = share_interval(5.5, 10)
    assert (found.low, found.high) == pytest.approx(stats.beta.ppf([0.025, 0.975], 6.0, 5.0))


def test_a_ratio_weighs_tokens_not_rows():
    """(10 + 90) / (10 + 30) = 2.5, not (1 + 3) / 2."""
    assert ratio_interval([10.0, 90.0] * 20, [10.0, 30.0] * 20, 1).value == pytest.approx(2.5)


def test_a_difference_of_perplexities_is_the_share_that_ours_is_higher_by():
    """exp(2) / exp(3) - 1 = -63.2 %."""
    tokens = [10.0, 20.0, 30.0] * 10
    ours, theirs = [2.0 * one for one in tokens], [3.0 * one for one in tokens]
    found = paired_ratio((ours, tokens), (theirs, tokens), 1, math.expm1)
    assert found.value == pytest.approx(math.exp(-1) - 1) and found.certain


def test_a_falling_transform_turns_the_bounds_around():
    tokens = np.full(50, 10.0)
    nats = np.linspace(10, 30, 50)
    up, down = ratio_interval(nats, tokens, 1), ratio_interval(nats, tokens, 1, lambda value: -value)
    assert down == Interval(-up.value, -(up.high or 0), -(up.low or 0))


def test_the_same_rows_and_names_give_the_same_interval():
    values = np.random.default_rng(0).random(60)
    first, again = (mean_interval(values, seed_of("seen", "f1")) for _ in range(2))
    assert first == again != mean_interval(values, seed_of("unseen", "f1"))


def test_a_number_of_a_whole_list_has_an_interval_near_that_of_its_formula():
    values = list(np.random.default_rng(0).random(200))
    by_list, by_rows = sample_interval(values, np.mean, 1, resamples=2000), mean_interval(values, 1)
    assert by_list.value == pytest.approx(by_rows.value)
    assert (by_list.low, by_list.high) == pytest.approx((by_rows.low, by_rows.high), abs=0.004)  # of 0.08


def test_a_number_that_resamples_do_not_have_is_without_interval():
    assert sample_interval([1.0, 0.0], lambda items: math.nan if items == [0.0, 0.0] else 1.0, 1).low is None


def test_two_halves_of_a_set_have_together_the_interval_of_the_whole():
    rng = np.random.default_rng(0)
    halves = [rng.random(400), rng.random(200)]
    together = weighted_interval([mean_interval(half, 1) for half in halves], [400, 200])
    whole = mean_interval(np.concatenate(halves), 1)
    assert (together.low, together.value, together.high) == pytest.approx(
        (whole.low, whole.value, whole.high), abs=2e-3
    )


def test_a_hundred_thousand_rows_take_little_memory():
    """2,000 resamples of them at once would be 1.6 GB of weights."""
    tracemalloc.start()
    mean_interval(np.random.default_rng(0).random(100_000), 1, resamples=100)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 256 * 1024**2


@pytest.mark.parametrize("values", [[], [0.5, math.nan]])
def test_no_rows_and_no_numbers_are_refused(values: list[float]):
    with pytest.raises(ValueError, match="needs rows"):
        mean_interval(values, 1)
