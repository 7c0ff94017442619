"""Numbers over steps, and fewer of them that look the same. It knows no file and no plot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_POINTS = 800  # of a curve: twice as many as a figure is wide
SMOOTH_SHARE = 0.02  # of a curve, that a smoothed point is the mean of
SMOOTH_FROM = 60  # points: shorter curves are told by their points
STEEP = 30.0  # how many times its median the highest value is, where only logarithms show both

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Series:
    """Values over steps; NaN stands for one that was not finite."""

    x: Values
    y: Values

    def __len__(self) -> int:
        return len(self.x)

    @property
    def known(self) -> Values:
        """The values that are finite."""
        return self.y[np.isfinite(self.y)]


def series_of(lines: Iterable[Mapping[str, Any]], key: str, over: str = "step") -> Series:
    """What the lines that have `key` say of it; null, which stands for NaN and infinity, is NaN."""
    pairs = [(line[over], line[key]) for line in lines if over in line and _is_number(line.get(key, ""))]
    values = np.array([[x, np.nan if y is None else y] for x, y in pairs], dtype=np.float64).reshape(-1, 2)
    return Series(values[:, 0], values[:, 1])


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def thin(series: Series, most: int = MOST_POINTS) -> Series:
    """At most so many points: of each stretch the lowest and the highest, in their order, so that no spike is lost."""
    count = len(series)
    if count <= most:
        return series
    edges = np.linspace(0, count, most // 2 + 1).round().astype(int)
    kept: list[int] = []
    for start, end in zip(edges[:-1], edges[1:], strict=True):
        part = series.y[start:end]
        if np.isfinite(part).any():
            kept += sorted({start + int(np.nanargmin(part)), start + int(np.nanargmax(part))})
        else:
            kept.append(start)
    return Series(series.x[kept], series.y[kept])


def smooth(series: Series, share: float = SMOOTH_SHARE) -> Series | None:
    """The mean of what lies around each point; None where there are too few points to tell a trend from them."""
    if len(series) < SMOOTH_FROM:
        return None
    width = max(int(len(series) * share), 5) | 1  # odd: as many before a point as behind it
    finite = np.isfinite(series.y)
    sums, counts = (
        np.convolve(np.pad(values, width // 2), np.ones(width), "valid")
        for values in (np.where(finite, series.y, 0.0), finite.astype(np.float64))
    )
    with np.errstate(invalid="ignore"):
        return Series(series.x, np.where(counts > 0, sums / counts, np.nan))


def is_steep(values: Values) -> bool:
    """True where the values are positive, and their highest would flatten all others on a linear scale."""
    return bool(len(values) and values.min() > 0 and values.max() > STEEP * np.median(values))
