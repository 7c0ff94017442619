"""What is looked for, and what becomes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.making import write_job, write_jsonl
from velocity.config.audit import AuditConfig
from velocity.config.load import load_job


def test_everything_is_reported_unless_the_job_says_otherwise():
    assert AuditConfig().acts("report") == ("duplicates", "overlap", "secrets", "oddities")
    assert AuditConfig(duplicates="drop", secrets="error").acts("drop", "error") == ("duplicates", "secrets")


@pytest.mark.parametrize("written", ["off", "'off'", "false"])
def test_off_is_off_however_it_is_written(tmp_path: Path, written: str):
    write_jsonl(tmp_path / "train.jsonl", [])
    path = write_job(tmp_path / "job.yaml")
    path.write_text(path.read_text().replace("data:\n", f"data:\n  audit: {{overlap: {written}, oddities: drop}}\n"))
    audit = load_job(path).job.data.audit
    assert (audit.overlap, audit.oddities) == ("off", "drop")


@pytest.mark.parametrize(
    "wrong",
    [{"duplicates": "error"}, {"overlap": True}, {"similarity": 0.4}, {"words": 4}, {"share": 1.1}, {"leaks": "drop"}],
)
def test_other_values_are_refused(wrong: dict[str, object]):
    with pytest.raises(ValidationError):
        AuditConfig.model_validate(wrong)
