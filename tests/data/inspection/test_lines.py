"""What a person reads of an audit."""

from __future__ import annotations

from velocity.config.audit import AuditConfig
from velocity.data.inspection.findings import KINDS, Audit, Finding, Row, decide
from velocity.data.inspection.lines import lines_of

NAMES = {"train": [["a.jsonl"]], "unseen": [["u.jsonl"]]}


def said(*findings: Finding, kinds: tuple[str, ...] = KINDS, **acts: str) -> list[str]:
    config = AuditConfig.model_validate(acts)
    return list(lines_of(Audit(kinds, {"train": 1000, "unseen": 50}, decide(findings, config), NAMES), config))


def train(line: int) -> Row:
    return Row("train", 0, 0, line)


def test_a_clean_set_is_one_line():
    assert said() == [
        "the text of 1,050 rows: no row twice; no evaluation text in training; no secret; "
        "no wrong encoding, no stray language"
    ]


def test_what_was_not_looked_for_is_not_said():
    assert said(kinds=()) == []
    assert said(kinds=("secrets",)) == ["the text of 1,050 rows: no secret"]


def test_findings_are_counted_with_their_first_places_and_what_to_do():
    found = [
        Finding("duplicates", train(line), "the same text as an earlier row", train(1), 1.0) for line in range(2, 7)
    ]
    assert said(*found, kinds=("duplicates",)) == [
        "duplicates: 5 rows of train say what an earlier row says",
        "  a.jsonl:2, as a.jsonl:1: the same text as an earlier row",
        "  a.jsonl:3, as a.jsonl:1: the same text as an earlier row",
        "  a.jsonl:4, as a.jsonl:1: the same text as an earlier row",
        "  and 2 more (--json has all)",
        "  data.audit.duplicates: drop leaves such rows out of training, off does not look for them",
    ]


def test_what_is_left_out_is_said_instead():
    lines = said(Finding("secrets", train(2), "an AWS key"), kinds=("secrets",), secrets="drop")
    assert lines == [
        "secrets: 1 rows of train hold what looks like a secret; 1 of them left out",
        "  a.jsonl:2: an AWS key",
    ]


def test_of_overlaps_the_largest_come_first():
    unseen = Row("unseen", 0, 0, 7)
    found = [Finding("overlap", train(line), "holds", unseen, share) for line, share in ((1, 0.1), (2, 1.0))]
    lines = said(*found, Finding("overlap", unseen, "stands", train(2), 1.0), kinds=("overlap",))
    assert lines == [
        "overlap: 2 rows of train have text in common with evaluation",
        "  a.jsonl:2, as u.jsonl:7: holds",
        "  a.jsonl:1, as u.jsonl:7: holds",
        "overlap: 1 rows of unseen have text in common with training",
        "  u.jsonl:7, as a.jsonl:2: stands",
        "  data.audit.overlap: drop leaves such rows out of training, off does not look for them",
    ]
