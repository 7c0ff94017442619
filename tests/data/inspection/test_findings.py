"""Which rows a run leaves out for what was found, and how findings are told."""

from __future__ import annotations

import pytest

from velocity.config.audit import AuditConfig
from velocity.data.inspection.findings import Audit, Finding, Row, decide
from velocity.errors import UserError

NAMES = {"train": [["a.jsonl", "b.jsonl"], ["c.jsonl"]], "unseen": [["u.jsonl"]]}


def row(line: int, source: int = 0, file: int = 0, name: str = "train") -> Row:
    return Row(name, source, file, line)


def copy(line: int, first: int) -> Finding:
    return Finding("duplicates", row(line), "the same text", row(first), 1.0)


def audit(*findings: Finding, **acts: str) -> Audit:
    config = AuditConfig.model_validate(acts)
    kinds = ("duplicates", "overlap", "secrets", "oddities")
    return Audit(kinds, {"train": 9, "unseen": 3}, decide(findings, config), NAMES)


def test_a_report_leaves_nothing_out():
    found = audit(copy(2, 1), Finding("secrets", row(3), "an AWS key"))
    assert found.rows_left_out() == [] and found.left_out(0) == {}
    assert found.counts() == {"duplicates": 1, "overlap": 0, "secrets": 1, "oddities": 0}


def test_only_what_is_to_be_dropped_is_left_out_by_source_file_and_line():
    found = audit(copy(2, 1), Finding("secrets", row(3, 1), "an AWS key"), Finding("secrets", row(3, 0, 1), "a token"),
                  secrets="drop")  # fmt: skip
    assert found.rows_left_out() == [row(3, 0, 1), row(3, 1)]
    assert {place: why["reason"] for place, why in found.left_out(0).items()} == {(1, 3): "a token"}
    assert found.left_out(1) == {(0, 3): {"reason": "an AWS key", "kind": "secrets", "with": None, "share": None}}


def test_a_row_of_an_evaluation_set_always_stays():
    held_out = [Finding(kind, row(1, name="unseen"), "why", row(1), 1.0) for kind in ("overlap", "secrets", "oddities")]
    assert audit(*held_out, overlap="drop", secrets="drop", oddities="drop").rows_left_out() == []


def test_of_rows_that_say_the_same_the_first_stays():
    assert audit(copy(2, 1), copy(5, 1), duplicates="drop").rows_left_out() == [row(2), row(5)]


def test_where_the_first_goes_for_another_reason_the_next_one_stays():
    secret = Finding("secrets", row(1), "an AWS key")
    assert audit(copy(2, 1), copy(5, 1), secret, duplicates="drop", secrets="drop").rows_left_out() == [row(1), row(5)]
    both = [secret, Finding("secrets", row(2), "an AWS key")]
    assert audit(copy(2, 1), copy(5, 1), *both, duplicates="drop", secrets="drop").rows_left_out() == [row(1), row(2)]
    assert audit(copy(2, 1), copy(5, 1), secret, duplicates="drop").rows_left_out() == [row(2), row(5)], "it stays, too"


def test_a_row_has_the_first_of_its_reasons():
    both = audit(copy(2, 1), Finding("secrets", row(2), "an AWS key"), duplicates="drop", secrets="drop")
    # the secret takes it out in any case; of the copy's cluster the first is kept
    assert both.left_out(0)[0, 2]["reason"] == "the same text"


def test_the_plain_values_hold_counts_of_all_and_as_many_findings_as_asked_for():
    found = audit(copy(2, 1), copy(5, 1), Finding("oddities", row(4, 1), "in de"), duplicates="drop").plain(2)
    assert found["counts"] == {"duplicates": 2, "overlap": 0, "secrets": 0, "oddities": 1}
    assert found["dropped"] == {"duplicates": 2, "overlap": 0, "secrets": 0, "oddities": 0}
    assert found["rows"] == {"train": 9, "unseen": 3}
    assert len(found["findings"]) == 2
    assert found["findings"][0] == {
        "kind": "duplicates", "set": "train", "file": "a.jsonl", "line": 2, "reason": "the same text", "dropped": True,
        "with": "a.jsonl:1", "share": 1.0,
    }  # fmt: skip


def test_a_secret_that_is_an_error_ends_the_job_with_its_kind_and_places():
    found = audit(*(Finding("secrets", row(line), "an AWS key") for line in (3, 5, 6, 8)), secrets="error")
    with pytest.raises(UserError) as caught:
        found.refuse(AuditConfig(secrets="error"))
    assert str(caught.value).splitlines() == [
        "4 rows hold what is not to be trained on: an AWS key",
        "  where: a.jsonl:3, a.jsonl:5, a.jsonl:6, and 1 more",
        "  fix:   take them out, or set data.audit.secrets: drop",
    ]
    found.refuse(AuditConfig())
    audit(secrets="error").refuse(AuditConfig(secrets="error"))
