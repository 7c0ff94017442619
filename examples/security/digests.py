"""Says each text again in short, in two ways: what reading teaches is recalled in another form only after several.

A fact that was read in one wording is seldom found by a question; said in several orders, each time with the full name
of what it is about, it is (Allen-Zhu and Li, "Physics of Language Models: Part 3.1", arXiv 2309.14316, section 4). And
who has read that a name has a description does not find the name from the description: so once the name comes last
(Golovneva et al., "Reverse Training to Nurse the Reversal Curse", arXiv 2403.13799). Knows no source and no file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container, Iterable, Iterator, Mapping

from entities import lead

PARAGRAPHS, PARAGRAPH_WORDS = 2, 40  # of what stands before the first section; of each of them
SECTION_WORDS = 24
ITEM_WORDS = 8  # at most, of a list's item
LONGEST = 50  # words: a first sentence that goes on and on is left out with its section
_CODE = re.compile(r"(\S*\d\S*): (.+)")  # a title such as `CWE-89: SQL Injection`
_SECTION = re.compile(r"^## +", re.MULTILINE)
_PARAGRAPH_END = re.compile(r"\n\s*\n")
_LIST = re.compile(r"(?!- )(.*?(?:: | by ))(.+)\.")  # a sentence, no bullet: what precedes a list, the list
_BETWEEN_ITEMS = re.compile(r", |(?<=\)) and ")  # where a list's items are names with codes, `and` stands between two


def digests(texts: Iterable[Mapping[str, str]], *, without: Container[str] = ()) -> Iterator[dict[str, str]]:
    """Yield {"text"} twice for each {"text"}: its parts' first sentences in order, and one by one in another order.

    One by one each has the name of what it is about: before it, or after a paragraph that does not begin with it. A
    list begins with its last item: each should be expected after the name, not after another item. A text is its
    title's line, paragraphs, and sections that begin with `## `; sections `without` these headings. The first of
    several lines is taken for the title; a text of one line has none, and is its own paragraph.
    """
    for record in texts:
        title, line_end, rest = record["text"].strip().partition("\n")
        if not line_end:
            title, rest = "", title
        name = _CODE.sub(r"\2 (\1)", title.lstrip("# "))
        parts = list(_parts(rest, name, without))
        short = [part for part in parts if len(part[0].split()) <= LONGEST] or parts[:1]
        yield {"text": "\n".join(filter(None, [title, *(said for said, _ in short)]))}
        yield {"text": "\n\n".join(sorted((named for _, named in short), key=_by_hash))}


def _parts(text: str, name: str, without: Container[str]) -> Iterator[tuple[str, str]]:
    """The first sentences of the first paragraphs and of each section that has some: as they are, and with the name."""
    opening, *sections = _SECTION.split(text)
    paragraphs = list(filter(str.strip, _PARAGRAPH_END.split(opening)))[:PARAGRAPHS]
    for paragraph in paragraphs:
        said = lead(paragraph, words=PARAGRAPH_WORDS)
        yield said, f"{said} That is {name}." if name and not said.startswith(name) else said
    for section in sections:
        heading, _, body = section.partition("\n")
        heading = heading.strip()
        if body.strip() and heading not in without:
            said = lead(body, words=SECTION_WORDS)
            yield f"{heading}: {said}", f"{name}. {heading}: {_turned(said)}" if name else f"{heading}: {said}"


def _turned(said: str) -> str:
    """The sentence with a list's last item first; a list is what stands in capitals after a colon or the word `by`."""
    found = _LIST.fullmatch(said)
    items = _BETWEEN_ITEMS.split(found[2]) if found else []
    if not found or not all(item[:1].isupper() and len(item.split()) <= ITEM_WORDS for item in items):
        return said
    return f"{found[1]}{', '.join([items[-1], *items[:-1]])}."


def _by_hash(text: str) -> str:
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
