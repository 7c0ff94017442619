"""Curves of many points become curves of few that show the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from velocity.report.series import Series, is_steep, series_of, smooth, thin


def series(*values: float) -> Series:
    return Series(np.arange(len(values), dtype=np.float64), np.array(values, dtype=np.float64))


def test_a_curve_of_ten_thousand_points_becomes_one_of_800_that_keeps_every_extreme():
    values = np.sin(np.arange(10_000) / 50)
    values[1234], values[8765] = 40.0, -40.0
    made = thin(series(*values))
    # 400 stretches of 25 points, of each the lowest and the highest
    assert len(made) == 800
    assert (made.y.max(), made.y.min()) == (40.0, -40.0)
    assert made.x[made.y.argmax()] == 1234
    assert (np.diff(made.x) > 0).all(), "points stay in their order"


def test_a_curve_of_few_points_stays_as_it_is():
    made = series(3.0, 1.0, 2.0)
    assert thin(made) is made


def test_a_stretch_without_a_finite_value_is_a_gap():
    values = np.ones(1000)
    values[500:520] = np.nan
    made = thin(series(*values), most=100)  # 50 stretches of 20 points
    assert np.isnan(made.y).sum() == 1
    assert made.x[np.isnan(made.y)] == 500


def test_lines_without_the_number_are_left_out_and_null_is_not_finite():
    lines: list[dict[str, Any]] = [{"step": 0, "eval": {}}]
    lines += [{"step": step, "loss": loss} for step, loss in ((1, 2.0), (2, None), (3, True))]
    made = series_of(lines, "loss")
    assert made.x.tolist() == [1, 2]
    assert made.known.tolist() == [2.0]


def test_a_smoothed_point_is_the_mean_of_what_lies_around_it():
    # 100 points: windows of 5, as 2 % of them would be fewer. Zigzag of 0 and 1: 2 or 3 ones among any 5
    made = smooth(series(*([0.0, 1.0] * 50)))
    assert made is not None
    assert set(made.y[2:-2].round(6)) == {0.4, 0.6}
    assert made.y[0] == pytest.approx(1 / 3), "at an end, of those that there are: 0, 1, 0"


def test_few_points_are_not_smoothed():
    assert smooth(series(*range(59))) is None


def test_only_positive_values_far_apart_need_logarithms():
    assert is_steep(np.array([1.0, 1.0, 31.0]))
    assert not is_steep(np.array([1.0, 1.0, 29.0]))
    assert not is_steep(np.array([0.0, 1.0, 31.0]))
    assert not is_steep(np.zeros(0))
