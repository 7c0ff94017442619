"""What several processes see in the rows of a source, chunk by chunk. It knows no cache and decides nothing."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Container, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from velocity.config.sections import SourceConfig
from velocity.data.inspection.duplicates import Fingerprint, Signer
from velocity.data.inspection.findings import Row
from velocity.data.inspection.leaks import secrets_in
from velocity.data.inspection.oddities import encoding_fault, language_of
from velocity.data.inspection.overlap import EvalIndex, Hits
from velocity.data.inspection.passages import Passage, passage_of
from velocity.data.inspection.words import Hashes, hashes, words
from velocity.data.parse import parse
from velocity.data.prepare import parse_json
from velocity.data.records import RecordError
from velocity.data.sources import Chunk


@dataclass(frozen=True)
class Reader:
    """Makes passages of the rows of one source; rows that are no record are tokenising's to refuse."""

    source: SourceConfig
    formats: Sequence[str]

    def passages(self, chunk: Chunk, only: Container[tuple[int, int]] | None = None) -> Iterator[tuple[int, Passage]]:
        """Each record's line and text, or those of some rows by file and line."""
        for line, row in enumerate(chunk.rows, chunk.first):
            if (chunk.raw and not row.strip()) or (only is not None and (chunk.file, line) not in only):
                continue
            try:
                value = parse_json(row) if chunk.raw else row
                yield line, passage_of(parse(value, self.source.format, self.source.fields, self.formats))
            except RecordError:
                continue


@dataclass
class Seen:
    """What is kept of some rows, in their order: a few numbers each."""

    lines: list[int] = field(default_factory=list)
    bands: list[Hashes] = field(default_factory=list)
    words: list[Hashes] = field(default_factory=list)
    languages: list[str] = field(default_factory=list)
    marks: list[tuple[int, str, str]] = field(default_factory=list)  # place among the rows, kind, reason
    hits: list[tuple[int, Hits]] = field(default_factory=list)


@dataclass(frozen=True)
class Look:
    """Looks at the chunks of one source for some kinds of findings.

    With an `index` for what they hold of evaluation rows; `keep_words` is for those rows themselves.
    """

    reader: Reader
    kinds: Collection[str]
    signer: Signer | None
    index: EvalIndex | None
    keep_words: bool

    def __call__(self, chunk: Chunk) -> tuple[int, Seen]:
        """The number of the file, and what was seen."""
        seen = Seen()
        for line, passage in self.reader.passages(chunk):
            self._see(passage, len(seen.lines), seen)
            seen.lines.append(line)
        return chunk.file, seen

    def _see(self, passage: Passage, place: int, seen: Seen) -> None:
        if self.signer is not None:
            seen.bands.append(self.signer(passage.text))
        if self.keep_words or self.index is not None:
            words_N = hashes(words(passage.text))
            if self.keep_words:
                seen.words.append(words_N)
            if self.index is not None and (hits := self.index.hits(words_N)) is not None:
                seen.hits.append((place, hits))
        if "secrets" in self.kinds and (found := secrets_in(passage.everything)):
            seen.marks.append((place, "secrets", ", ".join(found)))
        if "oddities" in self.kinds:
            if fault := encoding_fault(passage.everything):
                seen.marks.append((place, "oddities", fault))
            seen.languages.append(language_of(passage.text))


@dataclass(frozen=True)
class Print:
    """Makes fingerprints of some rows of one source, by file and line."""

    reader: Reader
    only: Collection[tuple[int, int]]

    def __call__(self, chunk: Chunk) -> list[tuple[int, int, Fingerprint]]:
        """File, line and fingerprint of each of them."""
        return [(chunk.file, line, Fingerprint.of(one)) for line, one in self.reader.passages(chunk, self.only)]


class SetSeen:
    """What is kept of all rows of a set; rows are numbered in their order."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._sources, self._files, self._lines = array("i"), array("i"), array("q")
        self._bands: list[Hashes] = []
        self.words: list[Hashes] = []
        self.languages: list[str] = []
        self.marks: list[tuple[int, str, str]] = []
        self.hits: list[tuple[int, Hits]] = []

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, source: int, file: int, seen: Seen) -> None:
        """These rows follow."""
        start = len(self)
        self._sources.extend([source] * len(seen.lines))
        self._files.extend([file] * len(seen.lines))
        self._lines.extend(seen.lines)
        if seen.bands:
            self._bands.append(np.stack(seen.bands))
        self.words += seen.words
        self.languages += seen.languages
        self.marks += [(start + place, kind, reason) for place, kind, reason in seen.marks]
        self.hits += [(start + place, hits) for place, hits in seen.hits]

    def row(self, number: int) -> Row:
        """Where a row stands."""
        return Row(self.name, self._sources[number], self._files[number], self._lines[number])

    @property
    def bands_NB(self) -> Hashes:  # noqa: N802 - shape letters
        """The bands of all rows' signatures."""
        return np.concatenate(self._bands) if self._bands else np.zeros((0, 1), dtype=np.uint64)
