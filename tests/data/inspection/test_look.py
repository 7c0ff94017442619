"""What is seen in chunks, and that rows keep their numbers and places."""

from __future__ import annotations

import json
from typing import Any

from tests.making import chat
from velocity.config.sections import SourceConfig
from velocity.data.inspection.duplicates import Signer
from velocity.data.inspection.findings import KINDS, Row
from velocity.data.inspection.look import Look, Print, Reader, SetSeen
from velocity.data.sources import Chunk

SOURCE = SourceConfig(path="a.jsonl")
KEY = "AKIA" + "IOSFODNN7EXAMPLE"


def raw(*rows: Any, file: int = 0, first: int = 1) -> Chunk:
    return Chunk(file, first, [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows], raw=True)


def look(*kinds: str, keep_words: bool = False) -> Look:
    signer = Signer(0.8) if "duplicates" in kinds else None
    return Look(Reader(SOURCE, ("text", "chat")), kinds, signer, None, keep_words)


def test_blank_lines_and_rows_that_are_no_record_are_passed_over_and_lines_count_on():
    chunk = raw({"text": "one"}, b"\n", b"no json", {"body": "x"}, {"text": 5}, chat("a", "b"), first=11)
    file, seen = look("secrets")(chunk)
    assert (file, seen.lines) == (0, [11, 16])


def test_a_field_has_the_name_that_the_source_gives_it():
    reader = Reader(SourceConfig(path="a.jsonl", format="text", fields={"text": "body"}), ("text",))
    assert [one.text for _, one in reader.passages(raw({"body": "x"}))] == ["x"]


def test_only_what_is_asked_for_is_seen():
    chunk = raw({"text": f"key {KEY} \ufffd"})
    assert [kind for _, kind, _ in look(*KINDS)(chunk)[1].marks] == ["secrets", "oddities"]
    nothing = look()(chunk)[1]
    assert (nothing.bands, nothing.words, nothing.languages, nothing.marks, nothing.hits) == ([], [], [], [], [])
    assert len(look(keep_words=True)(chunk)[1].words[0]) == 2  # key, and the key


def test_a_secret_in_a_system_turn_is_seen():
    _, seen = look("secrets")(raw(chat("Why?", "So.", system=f"Use {KEY}.")))
    assert seen.marks == [(0, "secrets", "an AWS key")]


def test_rows_of_a_set_are_numbered_over_all_sources_and_keep_their_places():
    rows = SetSeen("train")
    for source, file, chunk in ((0, 0, raw({"text": "a"}, b"", {"text": "b"})), (1, 2, raw({"text": KEY}, file=2))):
        rows.add(source, file, look(*KINDS)(chunk)[1])
    assert len(rows) == 3
    assert [rows.row(number) for number in range(3)] == [
        Row("train", 0, 0, 1),
        Row("train", 0, 0, 3),
        Row("train", 1, 2, 1),
    ]
    assert rows.marks == [(2, "secrets", "an AWS key")]
    assert rows.bands_NB.shape == (3, 18)


def test_fingerprints_are_made_of_the_rows_that_are_asked_for():
    chunk = raw({"text": "a"}, {"text": "b"}, {"text": "c"}, file=1, first=4)
    found = Print(Reader(SOURCE, ("text",)), {(1, 5), (0, 4), (1, 6)})(chunk)
    assert [(file, line) for file, line, _ in found] == [(1, 5), (1, 6)]
