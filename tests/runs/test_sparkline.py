"""A curve as blocks."""

from __future__ import annotations

from velocity.runs.sparkline import sparkline


def test_a_sparkline_goes_from_the_lowest_block_to_the_highest():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([7.0, 0.0]) == "█▁"


def test_a_sparkline_of_equal_values_is_flat_and_one_of_many_is_as_wide_as_a_line():
    assert sparkline([3.0, 3.0, 3.0]) == "▁▁▁"
    assert sparkline([3.0]) == "▁"
    line = sparkline([float(i) for i in range(1000)])
    assert (len(line), line[0], line[-1]) == (60, "▁", "█")


def test_a_block_is_the_mean_of_its_share():
    # 120 values in 60 blocks of two: means 0.5, 0.5, …, and 7.5 for the last
    assert sparkline([0.0, 1.0] * 59 + [7.0, 8.0]) == "▁" * 59 + "█"


def test_a_share_of_values_that_were_not_finite_is_a_gap_in_the_line():
    assert sparkline([1.0, None, 3.0]) == "▁ █"
    assert sparkline([None]) == " "
