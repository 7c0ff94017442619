"""What a text and a question are made of: entities, sections, passages, and the split by entity. Knows no source."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "seen", "unseen"]

STATEMENT_CHARACTERS = 80  # a shorter passage is a label that may recur, such as "Read Application Data."

_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)(?<!vs\.)(?<!etc\.)\s+(?=[A-Z\"'(])")


@dataclass(frozen=True)
class Passage:
    """A paragraph, a bullet or an example: the smallest piece that is kept or left out as a whole.

    With `mentions` it only names other entities in fixed words, as every entity may.
    """

    body: str
    label: str = ""
    mentions: bool = False

    @property
    def is_statement(self) -> bool:
        """Whether it says something of its own; a short label or a list of names does not."""
        return not self.mentions and len(self.body) >= STATEMENT_CHARACTERS

    @property
    def text(self) -> str:
        """The passage as it is printed: its label, if any, and its body."""
        return f"{self.label}: {self.body}" if self.label else self.body


@dataclass(frozen=True)
class Section:
    """Passages under one heading; with `bullets`, each is a list item."""

    heading: str
    passages: tuple[Passage, ...]
    bullets: bool = False

    def text(self, keep: Callable[[Passage], bool]) -> str:
        """Return the section as Markdown with the passages that `keep` accepts; empty when there are none."""
        kept = [passage.text for passage in self.passages if keep(passage)]
        if not kept:
            return ""
        body = "\n".join(f"- {text}" for text in kept) if self.bullets else "\n\n".join(kept)
        return f"## {self.heading}\n\n{body}" if self.heading else body


@dataclass(frozen=True)
class Question:
    """A question about one entity. Its answer: an opening, a body that is one line or passages, perhaps a closing.

    Opening and closing are fixed words with the entity's own names. Where the line is a list, `items` are all the
    things that are true of the entity, named in it or not. What is `common` is often true of its siblings as well.
    """

    kind: str
    ask: str
    opening: str
    line: str = ""
    passages: tuple[Passage, ...] = ()
    closing: str = ""
    items: tuple[str, ...] = ()
    common: bool = False

    def answer(self, keep: Callable[[Passage], bool]) -> str:
        """Return the answer with the passages that `keep` accepts; empty when it needed some and none is left."""
        body = self.body(keep)
        return self.worded(body) if body else ""

    def body(self, keep: Callable[[Passage], bool]) -> str:
        """Return what the answer says: the line, or the passages that `keep` accepts as bullets."""
        return self.line or "\n".join(f"- {passage.text}" for passage in self.passages if keep(passage))

    def worded(self, body: str) -> str:
        """Return the body between this question's opening and closing."""
        gap = "\n" if self.passages else " "
        return f"{self.opening}{gap}{body} {self.closing}".rstrip()


@dataclass(frozen=True)
class Entity:
    """One weakness, technique or mitigation: what is written about it and what can be asked about it.

    `kin` names what it belongs to, such as the entities that it is a kind of: who shares one of them is a sibling.
    """

    id: str
    name: str
    sections: tuple[Section, ...]
    questions: tuple[Question, ...]
    kin: tuple[str, ...] = ()

    def statements(self) -> Iterator[Passage]:
        """Yield the passages of its text that say something of their own."""
        for section in self.sections:
            yield from (passage for passage in section.passages if passage.is_statement)

    def text(self, keep: Callable[[Passage], bool]) -> str:
        """Return its text as Markdown with the passages that `keep` accepts."""
        return "\n\n".join(filter(None, [f"# {self.id}: {self.name}", *(s.text(keep) for s in self.sections)]))


def split_of(entity_id: str) -> Split:
    """Return the split of everything that is about one entity: 10% unseen, 10% seen (text, no chats), 80% train."""
    tenth = _number(entity_id) % 10
    return "unseen" if tenth == 0 else "seen" if tenth == 1 else "train"


def collapse(text: str) -> str:
    """Return the text on one line, single-spaced, without spaces that a removed citation left before punctuation."""
    text = re.sub(r"\s+", " ", text).strip()
    return re.sub(r" ([.,;:!?])(?= |$)", r"\1", text)


def lead(text: str, *, words: int) -> str:
    """Return the first sentences of a text, as many as fit into so many words, at least one."""
    kept: list[str] = []
    for sentence in _SENTENCE_END.split(collapse(text)):
        if kept and len(" ".join([*kept, sentence]).split()) > words:
            break
        kept.append(sentence)
    return " ".join(kept)


def listed(items: list[str]) -> str:
    """Return `a, b and c`."""
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))


def variant(entity_id: str, kind: str, *wordings: str) -> str:
    """Return one of the wordings, always the same for the same entity and kind of question."""
    return wordings[_number(f"{entity_id}/{kind}") % len(wordings)]


def _number(text: str) -> int:
    return int(hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(), 16)
