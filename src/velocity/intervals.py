"""95 % intervals of what rows show, by bootstrap over the rows. It knows no model, no file and no measure by name.

Shape letters: N rows, R resamples, M models (one, or two that are compared), K columns.

Each case has the way whose coverage was nearest to 95 % in simulations (docs/guides/evaluation.md has the numbers):
- right or wrong: quantiles of Beta(k + 1/2, n - k + 1/2) (Jeffreys; Brown, Cai and DasGupta 2001): resampling zeros
  and ones covers 63 % where 99 of 100 are right, and gives no width to 100 of 100;
- right or wrong, of two models: Bonett and Price 2012, which counts one more row that each of them alone had right;
- means of other numbers: bootstrap, bias-corrected and accelerated (BCa, Efron 1987);
- ratios of sums (a row has as many tokens as it has): bootstrap-t, since BCa covers 90 % at a hundred ragged rows;
- the same where rows are not kept, during training: Student's t and the delta method, from five sums over the rows.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import special

Floats: TypeAlias = npt.NDArray[np.float64]
Transform: TypeAlias = Callable[[float], float]
Bounds: TypeAlias = tuple[float, float]

LEVEL = 0.95
TAIL = (1 - LEVEL) / 2
NORMAL = float(special.ndtri(1 - TAIL))  # 1.96
RESAMPLES = 2000
FEW = 6  # rows
CELLS = 1 << 22  # of weights that exist at once: 32 MiB, however many rows there are


@dataclass(frozen=True)
class Interval:
    """A value and what it may be; without bounds where so few rows say nothing of how far it is off."""

    value: float
    low: float | None
    high: float | None

    @property
    def certain(self) -> bool:
        """True where a difference of nothing is outside."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def through(self, transform: Transform) -> Interval:
        """The interval of what a monotone function makes of the value."""
        low, high = (None if end is None else float(transform(end)) for end in (self.low, self.high))
        if low is not None and high is not None and low > high:
            low, high = high, low
        return Interval(float(transform(self.value)), low, high)


def seed_of(*names: str) -> int:
    """A seed that follows from names alone, so that an interval is the same each time that it is computed."""
    return int.from_bytes(hashlib.sha256("\0".join(names).encode()).digest()[:8], "big")


def mean_interval(
    values_N: npt.ArrayLike, seed: int, *, bounds: Bounds | None = (0.0, 1.0), resamples: int = RESAMPLES
) -> Interval:
    """Of the mean of one value a row; `bounds` are what a value can be at all, None where there are none."""
    values = _floats(values_N)
    if bounds == (0.0, 1.0) and _all_in(values, (0.0, 1.0)):
        return _proportion(int(values.sum()), len(values))
    return _mean(values, seed, bounds, resamples)


def ratio_interval(
    top_N: npt.ArrayLike,
    bottom_N: npt.ArrayLike,
    seed: int,
    transform: Transform = float,
    *,
    resamples: int = RESAMPLES,
) -> Interval:
    """Of sum(top) / sum(bottom), through a monotone `transform`: math.exp of nats per token is a perplexity."""
    return _ratio(_floats(top_N)[:, None], _floats(bottom_N)[:, None], seed, resamples).through(transform)


def share_interval(right: float, rows: int) -> Interval:
    """Of the share of rows that are right; a row may be half right."""
    return _proportion(right, rows)


def moments(top_N: npt.ArrayLike, bottom_N: npt.ArrayLike) -> Floats:
    """Five sums over rows; those of all rows are the sum of those of its parts, wherever they are."""
    top, bottom = np.asarray(top_N, dtype=np.float64), np.asarray(bottom_N, dtype=np.float64)
    return np.array([top.sum(), bottom.sum(), top @ top, top @ bottom, bottom @ bottom])


def ratio_interval_of(moments_5: npt.ArrayLike, transform: Transform = float) -> Interval:
    """Of sum(top) / sum(bottom) from the `moments` of the rows, through a monotone `transform`.

    Without bounds where the rows are worth less than two, or are not finite: a diverged model is no error here.
    """
    top, bottom, top_top, top_bottom, bottom_bottom = np.asarray(moments_5, dtype=np.float64).tolist()
    ratio, worth = (top / bottom, bottom**2 / bottom_bottom) if bottom else (math.nan, 0.0)
    if worth < 2 - 1e-9 or not math.isfinite(top_top):
        return Interval(transform(ratio), None, None)
    spread = max(top_top - 2 * ratio * top_bottom + ratio**2 * bottom_bottom, 0.0)
    half = _reach(worth) * math.sqrt(spread) / bottom
    return Interval(ratio, ratio - half, ratio + half).through(transform)


def paired_mean(
    ours_N: npt.ArrayLike, theirs_N: npt.ArrayLike, seed: int, *, bounds: Bounds | None = (-1.0, 1.0),
    resamples: int = RESAMPLES,
) -> Interval:  # fmt: skip
    """Of ours less theirs, where both have a value of the same row at the same place."""
    difference_N = _floats(ours_N) - _floats(theirs_N)
    if bounds == (-1.0, 1.0) and _all_in(difference_N, (-1.0, 0.0, 1.0)):
        return _discordant(int((difference_N > 0).sum()), int((difference_N < 0).sum()), len(difference_N))
    return _mean(difference_N, seed, bounds, resamples)


def paired_ratio(
    ours: tuple[npt.ArrayLike, npt.ArrayLike], theirs: tuple[npt.ArrayLike, npt.ArrayLike], seed: int,
    transform: Transform = float, *, resamples: int = RESAMPLES,
) -> Interval:  # fmt: skip
    """Of our ratio of sums less theirs, each (top_N, bottom_N) of the same rows; math.expm1 makes of nats a share."""
    top_NM, bottom_NM = (np.stack([_floats(mine), _floats(yours)], 1) for mine, yours in zip(ours, theirs, strict=True))
    return _ratio(top_NM, bottom_NM, seed, resamples).through(transform)


def sample_interval(
    items: Sequence[Any], statistic: Callable[[list[Any]], float], seed: int, *, resamples: int = 200
) -> Interval:
    """Of any number that a whole list of rows gives: percentiles, widened for few rows (Hesterberg 2015).

    Without bounds where resamples do not give numbers.
    """
    value, count = float(statistic(list(items))), len(items)
    if count < 2:
        return Interval(value, None, None)
    rng = np.random.default_rng(seed)
    found_R = np.array([float(statistic([items[i] for i in rng.integers(0, count, count)])) for _ in range(resamples)])
    if not np.isfinite(found_R).all():
        return Interval(value, None, None)
    tail = float(special.ndtr(-_reach(count)))
    return Interval(value, *_quantiles(found_R, tail, 1 - tail))


def weighted_interval(intervals: Sequence[Interval], weights: Sequence[float]) -> Interval:
    """Of a weighted mean of independent values, from the distance of each one's bounds (MOVER, Zou and Donner 2008)."""
    shares = [weight / sum(weights) for weight in weights]
    value = sum(share * one.value for share, one in zip(shares, intervals, strict=True))
    below, above = 0.0, 0.0
    for share, one in zip(shares, intervals, strict=True):
        if one.low is None or one.high is None:
            return Interval(value, None, None)
        below += (share * (one.value - one.low)) ** 2
        above += (share * (one.high - one.value)) ** 2
    return Interval(value, value - math.sqrt(below), value + math.sqrt(above))


def _proportion(right: float, rows: int) -> Interval:
    low = special.betaincinv(right + 0.5, rows - right + 0.5, TAIL) if right else 0.0
    high = special.betaincinv(right + 0.5, rows - right + 0.5, 1 - TAIL) if right < rows else 1.0
    return Interval(right / rows, float(low), float(high))


def _discordant(ours: int, theirs: int, rows: int) -> Interval:
    """Of the difference of two shares, from the rows that one model alone has right."""
    first, second = (ours + 1) / (rows + 2), (theirs + 1) / (rows + 2)
    reach = NORMAL * math.sqrt((first + second - (first - second) ** 2) / (rows + 2))
    middle = first - second
    return Interval((ours - theirs) / rows, max(-1.0, middle - reach), min(1.0, middle + reach))


def _mean(values_N: Floats, seed: int, bounds: Bounds | None, resamples: int) -> Interval:
    count, value = len(values_N), float(values_N.mean())
    apart_N = values_N - value
    if not np.abs(apart_N).max() > 1e-12 * max(1.0, abs(value)):
        return _constant(value, count, bounds)
    if count < FEW:
        return _student(values_N, bounds)
    found_R = value + np.concatenate(list(_resampled(apart_N[:, None], seed, resamples)))[:, 0] / count
    below = ((found_R < value).mean() + (found_R <= value).mean()) / 2
    bias = float(special.ndtri(np.clip(below, 1 / resamples, 1 - 1 / resamples)))
    skew = float((apart_N**3).sum() / (6 * (apart_N**2).sum() ** 1.5))
    reach = _reach(count)
    tails = [float(special.ndtr(bias + (bias + z) / max(1 - skew * (bias + z), 0.1))) for z in (-reach, reach)]
    return Interval(value, *_quantiles(found_R, *tails))


def _student(values_N: Floats, bounds: Bounds | None) -> Interval:
    """By Student's t: resamples of a handful of rows never leave the span of those rows."""
    value, rows = float(values_N.mean()), len(values_N)
    half = float(special.stdtrit(rows - 1, 1 - TAIL) * values_N.std(ddof=1) / math.sqrt(rows))
    least, most = bounds or (-math.inf, math.inf)
    return Interval(value, max(least, value - half), min(most, value + half))


def _constant(value: float, rows: int, bounds: Bounds | None) -> Interval:
    """All rows say the same: at 95 % at most this share of all there are says something else, if only the worst."""
    if bounds is None:
        return Interval(value, value, value) if rows > 1 else Interval(value, None, None)
    unseen = 1 - float(TAIL ** (1 / rows))
    return Interval(value, value - unseen * (value - bounds[0]), value + unseen * (bounds[1] - value))


def _ratio(top_NM: Floats, bottom_NM: Floats, seed: int, resamples: int) -> Interval:
    """Of the first model's ratio of sums, less the second's where there are two: bootstrap-t, studentised by the delta
    method in each resample, and widened as a t of as many rows as the ragged ones are worth (Kish 1965)."""
    signs_M = np.array([1.0, -1.0])[: top_NM.shape[1]]
    ratios_M = top_NM.sum(0) / bottom_NM.sum(0)
    value = float(ratios_M @ signs_M)
    worth = float(min(bottom_NM.sum(0) ** 2 / (bottom_NM**2).sum(0)))
    if worth < 2 - 1e-9:
        return Interval(value, None, None)
    rest_NM = top_NM - ratios_M * bottom_NM  # sums to 0: a resample's own ratio is then its distance from ours
    features_NK = np.concatenate([rest_NM, bottom_NM], 1)
    products_NK = (features_NK[:, :, None] * features_NK[:, None, :]).reshape(len(rest_NM), -1)
    columns_NK = np.concatenate([features_NK, products_NK], 1)
    error = float(_distances(columns_NK.sum(0, keepdims=True), signs_M)[1][0])
    pairs = [_distances(sums_RK, signs_M) for sums_RK in _resampled(columns_NK, seed, resamples)]
    distance_R, error_R = (np.concatenate(part) for part in zip(*pairs, strict=True))
    if not error > 1e-12 * max(1.0, abs(value)):
        return Interval(value, value, value)
    far_R = distance_R / np.maximum(error_R, error / 10)  # a resample of a few like rows has no spread of its own
    least, most = _quantiles(far_R, TAIL, 1 - TAIL)
    reach = error * _reach(worth) / NORMAL
    return Interval(value, value - reach * most, value - reach * least)


def _distances(sums_RK: Floats, signs_M: Floats) -> tuple[Floats, Floats]:
    """How far each resample's difference of ratios is from the rows' own; its standard error by the delta method."""
    models = len(signs_M)
    rest_RM, bottom_RM = sums_RK[:, :models], sums_RK[:, models : 2 * models]
    off_RM = rest_RM / bottom_RM
    slopes = np.concatenate([signs_M / bottom_RM, -signs_M * off_RM / bottom_RM], 1)
    products = sums_RK[:, 2 * models :].reshape(-1, 2 * models, 2 * models)
    spread_R = np.einsum("ri,rij,rj->r", slopes, products, slopes)
    return off_RM @ signs_M, np.sqrt(np.maximum(spread_R, 0.0))


def _resampled(columns_NK: Floats, seed: int, resamples: int) -> Iterator[Floats]:
    """Sums of the columns over rows drawn with replacement, as many as there are, some resamples at a time."""
    rng, rows = np.random.default_rng(seed), len(columns_NK)
    step = max(1, CELLS // rows)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn = rng.integers(0, rows, (count, rows)) + np.arange(count)[:, None] * rows
        yield np.bincount(drawn.ravel(), minlength=count * rows).reshape(count, rows) @ columns_NK


def _reach(rows: float) -> float:
    """What 1.96 is for so few rows: a bootstrap's own spread is too small by (n-1)/n, and that spread is uncertain."""
    return float(special.stdtrit(rows - 1, 1 - TAIL) * math.sqrt(rows / (rows - 1)))


def _quantiles(values_R: Floats, low: float, high: float) -> tuple[float, float]:
    first, last = np.quantile(values_R, [low, high])
    return float(first), float(last)


def _floats(values: npt.ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if not array.size or not np.isfinite(array).all():
        raise ValueError("an interval needs rows, and a finite number of each")
    return array


def _all_in(values_N: Floats, allowed: Sequence[float]) -> bool:
    return bool(np.isin(values_N, allowed).all())
