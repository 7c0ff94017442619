"""Texts cut into passages of some words, and passages put before a question. Pure: it knows no file and no index."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from velocity.data.records import Chat, Feedback, Message, Preference, Record, Text

TITLE_WORDS = 20  # a first line that is longer is no title
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])")


def text_of(record: Record) -> str:
    """What a record says, turn after turn; of two answers the one that is preferred."""
    if isinstance(record, Text):
        return record.text
    return "\n\n".join(str(message["content"]) for message in _said(record) if message.get("content"))


def _said(record: Chat | Preference | Feedback) -> tuple[Message, ...]:
    if isinstance(record, Chat):
        return record.messages
    return (*record.prompt, *(record.chosen if isinstance(record, Preference) else record.completion))


def cut(text: str, words: int) -> list[str]:
    """The text in passages of at most so many words, cut where paragraphs end, else sentences, else between words.

    Each begins with the text's title, if there is one: a short first line that stands alone, or a heading.
    """
    title, body = _title(text.strip())
    room = max(words - len(title.split()), words // 2)
    passages: list[list[str]] = [[]]
    for piece in _pieces(body, room):
        held = sum(len(part.split()) for part in passages[-1])
        if passages[-1] and held + len(piece.split()) > room:
            passages.append([])
        passages[-1].append(piece)
    found = ["\n".join(parts) for parts in passages if parts]
    return [f"{title}\n{passage}" if title else passage for passage in found] or ([title] if title else [])


def _title(text: str) -> tuple[str, str]:
    """The title without its mark, and what follows it."""
    first, _, rest = text.partition("\n")
    stands_alone = rest.startswith("\n") and not first.rstrip().endswith((".", "!", "?", ":"))
    if len(first.split()) <= TITLE_WORDS and (first.startswith("#") or stands_alone):
        return first.lstrip("# ").strip(), rest.strip()
    return "", text


def _pieces(text: str, room: int) -> Iterator[str]:
    """Paragraphs that fit, parts of those that do not; a heading stays with what it stands above."""
    heading = ""
    for paragraph in filter(None, (part.strip() for part in re.split(r"\n\s*\n", text))):
        if paragraph.startswith("#") and "\n" not in paragraph:
            heading = f"{paragraph.lstrip('# ')}: "
            continue
        yield from _parts(heading + paragraph, room)
        heading = ""


def _parts(paragraph: str, room: int) -> Iterator[str]:
    if len(paragraph.split()) <= room:
        yield paragraph
        return
    held: list[str] = []
    for sentence in (part for line in paragraph.split("\n") for part in _SENTENCE_END.split(line)):
        words = sentence.split()
        if held and len(held) + len(words) > room:
            yield " ".join(held)
            held = []
        held += words
        while len(held) > room:
            yield " ".join(held[:room])
            held = held[room:]
    if held:
        yield " ".join(held)


def with_passages(question: str, passages: Sequence[str]) -> str:
    """The question behind numbered passages; the question alone where nothing was found."""
    if not passages:
        return question
    numbered = "\n\n".join(f"[{number}] {passage}" for number, passage in enumerate(passages, 1))
    return f"{numbered}\n\nAnswer from the passages above where they help.\n{question}"
