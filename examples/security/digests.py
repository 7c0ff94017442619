"""Says each text again in short, in two ways: what reading teaches is recalled in another form only after several.

A fact that was read in one wording is seldom found by a question; said in several orders, each time with the full name
of what it is about, it is (Allen-Zhu and Li, "Physics of Language Models: Part 3.1", arXiv 2309.14316, section 4). And
who has read that a name has a description does not find the name from the description: so once the name comes last
(Golovneva et al., "Reverse Training to Nurse the Reversal Curse", arXiv 2403.13799). Knows no source and no file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping

from entities import lead

OPENING_WORDS, SECTION_WORDS = 50, 24  # of what stands before the first section, of each section
LONGEST = 50  # words: a first sentence that goes on and on is left out with its section
_CODE = re.compile(r"(\S*\d\S*): (.+)")  # a title such as `CWE-89: SQL Injection`
_SECTION = re.compile(r"^## +", re.MULTILINE)


def digests(texts: Iterable[Mapping[str, str]]) -> Iterator[dict[str, str]]:
    """Yield {"text"} twice for each {"text"}: its sections' first sentences in order, and one by one in another order.

    One by one each begins with the name of what it is about, but the opening ends with it. A text is its title's line,
    an opening, and sections that begin with `## `. The first of several lines is taken for the title; a text of one
    line has none, and is its own opening.
    """
    for record in texts:
        title, line_end, rest = record["text"].strip().partition("\n")
        if not line_end:
            title, rest = "", title
        name = _CODE.sub(r"\2 (\1)", title.lstrip("# "))
        parts = list(_parts(rest, name))
        short = [part for part in parts if len(part[0].split()) <= LONGEST] or parts[:1]
        yield {"text": "\n".join(filter(None, [title, *(said for said, _ in short)]))}
        yield {"text": "\n\n".join(sorted((named for _, named in short), key=_by_hash))}


def _parts(text: str, name: str) -> Iterator[tuple[str, str]]:
    """The first sentences of the opening and of each section that has some: as they are, and with the name."""
    opening, *sections = _SECTION.split(text)
    if opening.strip():
        said = lead(opening, words=OPENING_WORDS)
        yield said, f"{said} That is {name}." if name else said
    for section in sections:
        heading, _, body = section.partition("\n")
        if body.strip():
            said = f"{heading.strip()}: {lead(body, words=SECTION_WORDS)}"
            yield said, f"{name}. {said}" if name else said


def _by_hash(text: str) -> str:
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
