"""Pictures: whole SVG, in the page's own colours and font, with ids that no other picture has."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from velocity.report.plots import Dot, Level, Line, curves, histogram, intervals, is_near, said
from velocity.report.series import Series


def line(count: int = 50, **changes: object) -> Line:
    x = np.arange(count, dtype=np.float64)
    return Line(Series(x, 5 - x / count), **changes)  # type: ignore[arg-type]


def paths(svg: str, colour: str) -> int:
    return len(re.findall(rf"<path[^>]*stroke: var\(--{colour}\)", svg))


@pytest.mark.parametrize(
    "svg",
    [
        curves("a", 'say "<&>"', [line()], level=Level(4.5), marks=[20]),
        intervals("b", "dots", [("set <b>", [Dot(0.5, 0.4, 0.6), Dot(0.7, colour=1)])]),
        histogram("c", "bars", [0, 10, 20], [3, 5], limit=20),
    ],
)
def test_a_picture_is_well_formed_and_has_no_colour_font_or_style_of_its_own(svg: str):
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg") and root.get("role") == "img" and root.get("aria-label")
    assert not re.search(r"#[0-9a-f]{6}|font-family|<style|<metadata|xlink|https?://(?!www\.w3\.org/2000/svg)", svg)


def test_ids_of_two_pictures_differ_and_each_refers_to_its_own():
    one, other = curves("one", "", [line()]), curves("two", "", [line()])
    found = [set(re.findall(r'\bid="([^"]*)"', svg)) for svg in (one, other)]
    assert found[0] and not found[0] & found[1]
    used = set(re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', one))
    assert used and all((a or b) in found[0] for a, b in used)


def test_the_same_picture_is_the_same_text():
    assert curves("a", "", [line()]) == curves("a", "", [line()])


def test_a_level_far_from_the_values_is_not_drawn():
    # the values go from 5 to 4.02: three times 5 is 15
    assert is_near(14.9, line().series.known) and not is_near(15.1, line().series.known)
    assert paths(curves("a", "", [line()], level=Level(14)), "muted") == 1
    assert paths(curves("a", "", [line()], level=Level(1000)), "muted") == 0


def test_each_line_has_its_colour_and_one_point_is_a_dot():
    svg = curves("a", "", [line(colour=0), line(colour=3), line(1, colour=4)])
    assert paths(svg, "c0") == 1 and paths(svg, "c3") == 1
    assert re.search(r"<use[^>]*fill: var\(--c4\)", svg)


def test_text_of_a_label_is_escaped_and_otherwise_left_as_it_is():
    label = 'x#0a0000 <i> id="a" $y$ 1.23456'
    svg = intervals("b", "", [(label, [Dot(1.0)])])
    texts: list[str] = []

    class Reader(HTMLParser):
        def handle_data(self, data: str) -> None:
            texts.append(data)

    Reader().feed(svg)
    assert label in texts
    assert "<i>" not in svg


def test_values_that_are_not_finite_leave_a_gap_and_do_not_stop_it():
    y = np.array([1.0, np.nan, 3.0])
    svg = curves("a", "", [Line(Series(np.arange(3.0), y), kind="points")])
    assert len(re.findall(r"<use[^>]*var\(--c0\)", svg)) == 2


def test_a_curve_in_words_names_its_ends_and_extremes():
    series = Series(np.arange(3.0), np.array([2.0, 1.0, 4.0]))
    assert said("Loss", series) == "Loss from 2.00 to 4.00, between 1.00 and 4.00, over 3 points"
    assert said("Loss", Series(np.arange(1.0), np.array([np.nan]))) == "Loss: no value is finite"
