"""Runs become one page of HTML. It writes no file.

The page needs nothing from a network: style and pictures lie in it. Whatever it shows of a run is text that nobody
vouches for, and is escaped; what is put in as it is (`safe` in the template) is our own style, script and SVG.
"""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, TypeAlias

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup, escape

from velocity import __version__
from velocity.report import compare, figures, headline, rows
from velocity.report.card import DataCard, data_card
from velocity.report.facts import Run, Setting
from velocity.report.headline import Fact
from velocity.report.spelling import cut
from velocity.report.table import Figure, Table

MOODS = {"complete": "good", "failed": "bad", "killed": "bad"}
VALUE_LETTERS = 400  # of a setting

Compared: TypeAlias = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Live:
    """What a page has that reloads itself: the state that it shows."""

    state: str

    @property
    def script(self) -> str:
        """The script that asks for the state, and reloads the page where it is another one."""
        return _packaged("watch.js")


@dataclass(frozen=True)
class Part:
    """What the head of the page says of one run."""

    run: Run
    facts: Sequence[Fact]
    why: str
    mood: str


@dataclass(frozen=True)
class Told:
    """Figures, and the tables that say the same in numbers."""

    figures: Sequence[Figure]
    tables: Sequence[Table]


def render(runs: Sequence[Run], live: Live | None = None, compared: Compared = ()) -> str:
    """The page of one run, or of several side by side: `compared` is how evaluations differ from the first one."""
    alone = len(runs) == 1
    parts = [_part(run) for run in runs]
    sections = {
        "overview": None if alone else compare.overview(runs),
        "differing": compare.differing_settings(runs),
        "evaluation": _evaluation(runs, compared),
        "curves": figures.curves(runs),
        "beside": [] if alone else rows.side_by_side(runs),
        "rows": [(run.label, groups) for run in runs if (groups := _rows(run, alone=alone))],
        "data": _data(runs),
    }
    heading = " · ".join(run.label for run in runs)
    return _template().render(
        parts=parts, live=live, title=f"{heading} — Velocity", heading=heading, policy=policy(live),
        style=_packaged("page.css"), contents=list(_contents(sections)),
        configuration=[(run.label, list(_configuration(run))) for run in runs],
        environment=[(run.label, _environment(run)) for run in runs],
        version=__version__, made=time.strftime("%Y-%m-%d %H:%M:%S"), **sections,
    )  # fmt: skip


def policy(live: Live | None = None) -> str:
    """The page's Content-Security-Policy: nothing is loaded, no script runs but the one of a live page."""
    allowed = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    if live is None:
        return allowed
    digest = base64.b64encode(hashlib.sha256(live.script.encode()).digest()).decode()
    return f"{allowed}; script-src 'sha256-{digest}'; connect-src 'self'"


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=False)
    environment.filters["breakable"] = breakable
    return environment.from_string(_packaged("page.html.jinja"))


def breakable(text: str) -> Markup:
    """The text, escaped; a path or a key may be broken behind its slashes, dots and dashes before anywhere else."""
    return Markup(re.sub(r"(?<=\w[./_-])(?=\w)", "<wbr>", str(escape(text))))


@cache
def _packaged(name: str) -> str:
    return files("velocity.report").joinpath(name).read_text("utf-8")


def _part(run: Run) -> Part:
    why = str(run.status.get("why", "")).strip().partition("\n")[0]
    return Part(run, headline.facts(run), why, MOODS.get(run.state, ""))


def _contents(sections: dict[str, Any]) -> Iterator[tuple[str, str]]:
    names = {
        "overview": ("Together", "runs"), "evaluation": ("Evaluation", "evaluation"), "curves": ("Course", "curves"),
        "beside": ("Side by side", "beside"), "rows": ("Rows", "rows"), "data": ("Data", "data"),
    }  # fmt: skip
    yield from (names[key] for key in names if sections[key])
    yield from (("Configuration", "configuration"), ("Environment", "environment"))


def _evaluation(runs: Sequence[Run], compared: Compared) -> list[Told]:
    """What was measured by evaluate jobs, and what training measured on its way."""
    found = [
        Told(figures.intervals(runs), [one for one in (compare.measured(runs), compare.paired(runs, compared)) if one]),
        Told(figures.evaluation_curves(runs), [one for one in (compare.trained(runs),) if one]),
    ]
    return [one for one in found if one.tables]


def _rows(run: Run, *, alone: bool) -> Any:
    """Its extremes; of completions the first, where there is nothing to compare them with."""
    return rows.extremes(run) or (rows.sample(run) if alone else [])


def _data(runs: Sequence[Run]) -> list[tuple[str, DataCard]]:
    cards = ((run.label, data_card(run, number)) for number, run in enumerate(runs))
    return [(label, card) for label, card in cards if card]


def _configuration(run: Run) -> Iterator[tuple[Table, bool]]:
    """Tables of settings, and whether they are open: what somebody chose, then all others, then the engine's."""
    chosen = [one for one in run.settings if one.origin != "default"]
    rest = [one for one in run.settings if one.origin == "default"]
    for caption, settings, is_open in (
        ("Set by the job, the command line or the planner", chosen, True),
        ("Left at their defaults", rest, False),
        ("DeepSpeed’s configuration", run.engine_settings, False),
    ):
        if settings:
            yield Table(caption, ["setting", "value", "origin"], [_row(one) for one in settings], names=3), is_open


def _row(setting: Setting) -> list[str]:
    return [cut(text, VALUE_LETTERS) for text in (setting.key, setting.value, setting.origin)]


def _environment(run: Run) -> list[Table]:
    found = run.environment
    versions = found.get("versions")
    shown = {"velocity": found.get("velocity"), **(versions if isinstance(versions, dict) else {})}
    machine = {**_plain(found.get("hardware")), "processes": _said(found.get("world_size"))}
    machine["git commit"] = _said(found.get("git_commit") or None)
    tables = (
        Table("Versions", ["package", "version"], [[name, _said(one or None)] for name, one in shown.items()], 2),
        Table("Machine", ["what", "value"], [[_spaced(name), one] for name, one in machine.items()], 2),
        Table("Planned for", ["what", "value"], [[_spaced(name), one] for name, one in _plan(run).items()], 2),
    )
    return [table for table in tables if table.rows]


def _plan(run: Run) -> dict[str, str]:
    chosen = run.plan.get("chosen")
    words = {"plan": _said(chosen["words"])} if isinstance(chosen, dict) and chosen.get("words") else {}
    return words | _plain(run.plan.get("machine"))


def _plain(tree: Any) -> dict[str, str]:
    """A mapping as words."""
    return {str(key): cut(_said(value), VALUE_LETTERS) for key, value in tree.items()} if isinstance(tree, dict) else {}


def _spaced(name: str) -> str:
    return name.replace("_gib", ", GiB").replace("_", " ")


def _said(value: Any) -> str:
    if isinstance(value, list):
        counts = Counter(map(_said, value))
        return "; ".join(f"{count} × {one}" if count > 1 else one for one, count in counts.items()) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{_spaced(str(key))} {_said(inner)}" for key, inner in value.items())
    if value is None:
        return "–"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
