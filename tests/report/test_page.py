"""The page: whole HTML, readable by everybody, with nothing of a run taken for markup."""

from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.making import write_jsonl
from tests.report.runs_made import evaluate_run, fail, generate_run, reject, restarted, training_run
from velocity.report.facts import Run, read_run
from velocity.report.page import Live, breakable, policy, render

VOID = {"meta", "link", "br", "wbr", "img", "hr", "input"}
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


class Outline(HTMLParser):
    """What a page holds; AssertionError where a tag is closed that was not open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> within {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def named(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in names]


def trained(folder: Path) -> list[Run]:
    run = training_run(folder / "run")
    reject(run)
    restarted(run, 12)
    return [read_run(run.path)]


def failed(folder: Path) -> list[Run]:
    run = training_run(folder / "run")
    fail(run, "ValueError: no")
    return [read_run(run.path)]


def evaluated(folder: Path) -> list[Run]:
    evaluate_run(folder / "stock", 0.44)
    evaluate_run(folder / "tuned", 0.55, seed=1)
    return [read_run(folder / name) for name in ("stock", "tuned")]


def generated(folder: Path) -> list[Run]:
    return [read_run(generate_run(folder / name, [("a?", name)]).path) for name in ("a", "b")]


@pytest.mark.parametrize("make", [trained, failed, evaluated, generated])
def test_a_page_is_well_formed_and_needs_nothing_from_elsewhere(tmp_path: Path, make: Any):
    page = Outline(render(make(tmp_path)))
    ids = Counter(attributes["id"] for _, attributes in page.tags if attributes.get("id"))
    assert [one for one, count in ids.items() if count > 1] == []
    links = [one["href"] for one in page.named("a")]
    assert links and all(link and link.startswith("#") and link[1:] in ids for link in links)
    assert page.named("script", "iframe", "img", "form", "object", "base") == []
    outside = [v for _, attrs in page.tags for k, v in attrs.items() if k in ("src", "href") and v and v[0] not in "#d"]
    assert outside == []
    (safety,) = [one["content"] for one in page.named("meta") if one.get("http-equiv") == "Content-Security-Policy"]
    assert safety == policy() and "default-src 'none'" in safety and "script-src" not in safety


@pytest.mark.parametrize("make", [trained, evaluated])
def test_a_page_has_headings_in_order_captions_and_pictures_in_words(tmp_path: Path, make: Any):
    page = Outline(render(make(tmp_path)))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in zip(levels, levels[1:], strict=False))
    assert len(page.named("table")) == len(page.named("caption")) > 0
    assert all(one.get("role") == "img" and one.get("aria-label") for one in page.named("svg"))
    assert len(page.named("svg")) == len(page.named("figure")) == len(page.named("figcaption")) > 0
    assert all(one.get("scope") for one in page.named("th"))
    assert page.named("html")[0]["lang"] == "en"


def test_a_training_run_has_every_section(tmp_path: Path):
    text = render(trained(tmp_path))
    page = Outline(text)
    said = "".join(page.text)  # a path is broken into pieces
    assert [one["id"] for one in page.named("section")] == [
        "evaluation",
        "curves",
        "data",
        "configuration",
        "environment",
    ]
    for words in (
        "CC-BY-4.0",
        "no turn of the assistant",
        "command line",
        "zero_optimization.",
        "2 × name H100",
        "deepspeed",
    ):
        assert words in said, words


def test_a_run_that_failed_says_its_cause_and_trace(tmp_path: Path):
    said = "".join(Outline(render(failed(tmp_path))).text)
    assert "ValueError: no" in said and "rank 1 on node-2, step 17" in said and "Traceback: …" in said


def test_nothing_of_a_run_is_taken_for_markup(tmp_path: Path):
    folder = tmp_path / "<script>alert(0)<" / "script>"
    rows = [(HOSTILE, HOSTILE)]
    runs = [generate_run(folder / name, rows) for name in ("a", "b")]
    write_jsonl(runs[1].completions["jsonl"], [{"id": "r0", "prompt": HOSTILE, "completion": f"{HOSTILE} <b>more</b>"}])
    trains = training_run(folder / "t", model={"path": HOSTILE, "revision": HOSTILE})
    fail(trains, HOSTILE)
    write_jsonl(trains.rejected, [{"file": HOSTILE, "line": 1, "field": HOSTILE, "reason": HOSTILE}])
    trains.environment.write_text(json.dumps({"versions": {HOSTILE: HOSTILE}, "hardware": {HOSTILE: [HOSTILE]}}))
    lines = [{"step": step, "eval": {HOSTILE: {"perplexity": 9.0 - step}}} for step in range(3)]
    write_jsonl(trains.metrics, lines)
    judged = evaluate_run(folder / "e", 0.5)
    evaluation = json.loads((judged.path / "evaluation.json").read_text())
    evaluation["sets"][HOSTILE] = evaluation["sets"].pop("said")
    (judged.path / "evaluation.json").write_text(json.dumps(evaluation))
    every = [read_run(run.path) for run in (*runs, trains, judged)]
    for shown in (every, every[:1], every[2:3], every[3:]):
        page = Outline(render(shown))
        assert page.named("script", "img") == []
        assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
        assert HOSTILE in "".join(page.text)


def test_a_page_that_watches_may_run_its_own_script_and_no_other(tmp_path: Path):
    runs = trained(tmp_path)
    page = Outline(render(runs, Live("abc")))
    assert page.named("html")[0]["data-state"] == "abc"
    assert len(page.named("script")) == 1
    safety = policy(Live("abc"))
    assert re.search(r"script-src 'sha256-[\w+/=]+'; connect-src 'self'$", safety)
    assert "unsafe-inline" not in safety.replace("style-src 'unsafe-inline'", "")


def test_a_path_may_be_broken_behind_its_slashes_and_is_escaped():
    assert breakable("runs/a_b.jsonl") == "runs/<wbr>a_<wbr>b.<wbr>jsonl"
    assert breakable("<b>&'") == "&lt;b&gt;&amp;&#39;"
