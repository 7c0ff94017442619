"""Pages in a real browser: every picture is drawn, nothing is cut off, on a phone and on a desk, by day and by night.

It needs a Chromium (see chromium.py), and is skipped without one; test_page.py looks at the same pages as text.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.report.chromium import Chromium, find_chromium
from tests.report.runs_made import evaluate_run, fail, generate_run, reject, restarted, step_line, training_run
from velocity.report.serve import Server, Watched
from velocity.report.write import write_report

PHONE, DESK = 390, 1280
LONG = "runs/" + "averylongnamewithoutanend" * 8

# Of each picture: whether it has a size, lines or dots within it, and words of at least 8 pixels that nothing cuts off.
PICTURES = """[...document.querySelectorAll("figure")].map(figure => {
  const svg = figure.querySelector("svg"), box = svg.getBoundingClientRect(), frame = figure.getBoundingClientRect();
  const marks = [...svg.querySelectorAll("path, use")].filter(one => getComputedStyle(one).stroke !== "none"
    || getComputedStyle(one).fill !== "none").map(one => one.getBoundingClientRect())
    .filter(it => it.width + it.height > 0);
  const words = [...svg.querySelectorAll("text")].map(one => one.getBoundingClientRect());
  const inside = it => it.left >= frame.left - 1 && it.right <= frame.right + 1 && it.top >= frame.top - 1
    && it.bottom <= frame.bottom + 1;
  return {title: figure.querySelector("figcaption").textContent.trim(), width: box.width, height: box.height,
    marks: marks.length, words: words.length, smallest: Math.min(...words.map(it => it.height)),
    cut: words.filter(it => !inside(it)).length};
})"""
# What reaches beyond the window, and is not in a box that scrolls by itself.
BEYOND = """[...document.body.querySelectorAll("*")].filter(one => !one.closest(".scroll > *") && !one.closest("svg *")
  && one.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
  .map(one => one.outerHTML.slice(0, 200))"""
# The contrast of words against what lies behind them (WCAG 2.2), of the plainest kinds of text.
CONTRAST = """(() => {
  const light = text => { const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map(v => (v /= 255) <= .04045 ? v / 12.92
    : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
  const behind = one => { for (; one; one = one.parentElement) { const c = getComputedStyle(one).backgroundColor;
    if (!c.startsWith("rgba(0, 0, 0, 0")) return c; } return "rgb(255, 255, 255)"; };
  return [...document.querySelectorAll("p, dt, dd, td, th, caption, figcaption, .note, .state, a, ins, del, summary")]
    .map(one => { const [a, b] = [light(getComputedStyle(one).color), light(behind(one))].sort((x, y) => y - x);
      return [(a + .05) / (b + .05), one.outerHTML.slice(0, 80)]; }).filter(one => one[0] < 4.5);
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    find_chromium()
    made = Chromium(tmp_path_factory.mktemp("chromium") / "profile")
    yield made
    made.close()


def trained(folder: Path) -> list[Path]:
    run = training_run(folder / "run", steps=10_000, model={"path": LONG})
    reject(run)
    restarted(run, 4200)
    return [run.path]


def failed(folder: Path) -> list[Path]:
    run = training_run(folder / "run")
    fail(run, f"ValueError: {LONG}")
    return [run.path]


def evaluated(folder: Path) -> list[Path]:
    names = ("stock", "tuned", "stock-with-retrieval", "tuned-with-retrieval")
    return [evaluate_run(folder / name, 0.4 + i / 20, seed=i).path for i, name in enumerate(names)]


def generated(folder: Path) -> list[Path]:
    rows = [("Which input is checked?", f"{LONG} none is"), ("Why?", "<script>document.title = 'broken'</script>")]
    return [
        generate_run(folder / name, [(prompt, f"{name} {said}") for prompt, said in rows]).path for name in ("a", "b")
    ]


@pytest.mark.parametrize("make", [trained, failed, evaluated, generated])
def test_pictures_are_drawn_and_nothing_is_cut_off(
    tmp_path: Path, browser: Chromium, make: Callable[[Path], list[Path]]
):
    url = f"file://{write_report(make(tmp_path), tmp_path / 'page.html')}"
    for width in (PHONE, DESK):
        for dark in (False, True):
            browser.open(url, width=width, dark=dark)
            assert browser.run("document.documentElement.scrollWidth") <= width
            assert browser.run(BEYOND) == []
            pictures: list[dict[str, Any]] = browser.run(PICTURES)
            assert pictures
            for one in pictures:
                assert one["marks"] > 5 and one["words"] >= 3 and one["cut"] == 0, one
                assert one["width"] > 250 and one["height"] > 60 and one["smallest"] >= 8, one
            assert browser.run(CONTRAST) == []
            assert browser.complaints() == [], "a policy is broken, or something is missing"
            assert browser.requests() == [url], "it needs no network"
            assert browser.run("document.title") != "broken"


def test_dark_is_dark_and_light_is_light(tmp_path: Path, browser: Chromium):
    url = f"file://{write_report(failed(tmp_path))}"
    colours = (
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector('svg text')).fill]"
    )
    told = []
    for dark in (False, True):
        browser.open(url, width=DESK, dark=dark)
        told.append([sum(map(int, colour[4:-1].split(","))) for colour in browser.run(colours)])
    (day_paper, day_ink), (night_paper, night_ink) = told
    assert day_paper > 700 > 400 > day_ink and night_paper < 100 < 400 < night_ink


def test_a_page_of_ten_thousand_steps_opens_within_two_seconds(tmp_path: Path, browser: Chromium):
    file = write_report(trained(tmp_path))
    assert file.stat().st_size < 3e6
    # the best of five: others may keep this machine busy. Measured: 0.1 s, on a quiet one
    assert min(browser.open(f"file://{file}", width=DESK) for _ in range(5)) < 2


def test_closed_parts_are_printed_as_well(tmp_path: Path, browser: Chromium):
    browser.open(f"file://{write_report(failed(tmp_path))}", width=DESK)
    assert len(browser.ask("Page.printToPDF")["data"]) > 10_000
    browser.ask("Emulation.setEmulatedMedia", media="print")
    shown = browser.run("[...document.querySelectorAll('details:not([open]) table')].map(one => one.checkVisibility())")
    browser.ask("Emulation.setEmulatedMedia", media="")
    assert shown and all(shown)


def test_a_page_that_is_watched_shows_a_new_line_by_itself(tmp_path: Path, browser: Chromium):
    run = training_run(tmp_path / "run")
    with Server(Watched(run.path, "runs/run"), "127.0.0.1", 0, "a1b2") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            browser.open(server.address, width=DESK)
            assert browser.run("document.getElementById('live').textContent") == "live"
            assert browser.run("document.querySelectorAll('details').forEach(it => it.open = true)") is None
            with run.metrics.open("a") as stream:
                stream.write(json.dumps(step_line(31, 31)) + "\n")
            browser.wait_for("document.body.textContent.includes('31,000')")  # tokens trained on, of one step more
            assert browser.run("[...document.querySelectorAll('details')].every(it => it.open)"), (
                "what was open stays so"
            )
            assert browser.complaints() == []
        finally:
            server.shutdown()
