"""Numbers as people write them."""

from __future__ import annotations

import pytest

from velocity.report.spelling import count, cut, duration, number, percent, short


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1.23456, "1.23"), (12.0, "12.0"), (123720.1, "123,720"), (0.012345, "0.0123"), (1e-5, "1.00e-5"),
     (-2.5, "−2.50"), (None, "not finite"), (float("nan"), "not finite"), (1e16, "1.00e16")],
)  # fmt: skip
def test_a_number_has_three_digits_that_count(value: float | None, text: str):
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0125, "0.0125"), (1500, "1.5k"), (2e7, "20M"), (0, "0"), (1e-6, "1e-6")]
)
def test_a_tick_is_short(value: float, text: str):
    assert short(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (45, "45 s"), (725, "12 min 5 s"), (3600, "1 h"), (12000, "3 h 20 min"), (187200, "2 d 4 h")],
)
def test_a_duration_is_its_two_largest_units(seconds: float, text: str):
    assert duration(seconds) == text


def test_many_things_are_counted_in_millions_and_billions():
    assert [count(n) for n in (0, 9_999_999, 10_000_000, 12_345_678_901)] == ["0", "9,999,999", "10 M", "12.3 B"]


def test_a_change_has_its_sign():
    assert (percent(0.5), percent(-0.04)) == ("+50.0 %", "−4.0 %")


def test_the_middle_of_a_long_text_is_left_out_and_counted():
    assert cut("short") == "short"
    assert cut("a" * 600 + "b" * 600, 1000) == "a" * 500 + " [… 200 characters …] " + "b" * 500
