"""Differences in words."""

from __future__ import annotations

import pytest

from velocity.evaluation.words import Better, Unit, caution, said
from velocity.intervals import Interval


@pytest.mark.parametrize(
    ("interval", "better", "unit", "words"),
    [
        (Interval(0.11, 0.07, 0.15), "higher", "points", "better by 11.0 points (95 %: 7.0 to 15.0)"),
        (Interval(-0.02, -0.035, -0.001), "higher", "points", "worse by 2.0 points (95 %: 0.1 to 3.5)"),
        (
            Interval(0.01, -0.021, 0.034),
            "higher",
            "points",
            "no difference that 373 rows can show (−2.1 to 3.4 points)",
        ),
        (Interval(-0.312, -0.35, -0.28), "lower", "percent", "better: lower by 31.2 % (95 %: 28.0 to 35.0)"),
        (Interval(0.041, 0.03, 0.052), "lower", "percent", "worse: higher by 4.1 % (95 %: 3.0 to 5.2)"),
        (Interval(-0.2, -0.21, -0.19), "lower", "bits", "better: lower by 0.200 bits a byte (95 %: 0.190 to 0.210)"),
        (Interval(0.0, 0.0, 0.0), "lower", "percent", "no difference that 373 rows can show (0.0 to 0.0 %)"),
        (Interval(-0.3, None, None), "lower", "percent", "−30.0 %, of which 373 rows cannot say how sure it is"),
    ],
)
def test_words_say_what_the_interval_says(interval: Interval, better: Better, unit: Unit, words: str):
    assert said(interval, 373, better=better, unit=unit) == words


def test_an_end_at_nothing_is_no_difference():
    """Were it not, one row more could turn the words around."""
    assert said(Interval(0.02, 0.0, 0.04), 373, better="higher", unit="points").startswith("no difference")


def test_a_number_that_rounds_to_nothing_has_no_sign():
    assert "(0.0 to 1.0 points)" in said(Interval(0.0, -0.0001, 0.01), 10, better="higher", unit="points")


def test_one_row_is_one():
    assert said(Interval(0.0, -1.0, 1.0), 1, better="higher", unit="points").startswith(
        "no difference that 1 row can show"
    )


def test_many_differences_bring_a_caution_a_handful_none():
    """0.05 x 12 = 0.6, 0.05 x 60 = 3."""
    assert caution(5) == ""
    assert caution(12).startswith("12 differences were looked at: were there none at all, about 0.6 of them")
    assert "about 3 of them" in caution(60)
