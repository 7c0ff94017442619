"""A table of a page, and a group of texts on it: what pages are made of besides figures. It knows no run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Table:
    """A caption, a head, and rows of texts. The first `names` columns are words, the others numbers."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 1
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """A picture as SVG, with what stands around it. `legend` has a name and the number of a colour each."""

    title: str
    svg: str
    caption: str = ""
    legend: Sequence[tuple[str, int]] = ()


@dataclass(frozen=True)
class Piece:
    """Some words of an answer: `same`, or not in the first one (`ins`), or only there (`del`)."""

    kind: str
    text: str


@dataclass(frozen=True)
class Said:
    """What one model said, or one of the answers that it could choose."""

    who: str
    pieces: Sequence[Piece]
    note: str = ""
    good: bool | None = None  # right or wrong, where that is known


@dataclass(frozen=True)
class Exchange:
    """A prompt, and what was said to it."""

    title: str
    prompt: str
    said: Sequence[Said] = ()
    reference: str = ""


@dataclass(frozen=True)
class Group:
    """Exchanges that belong together."""

    title: str
    exchanges: Sequence[Exchange]
    note: str = ""
    tables: Sequence[Table] = field(default=())
