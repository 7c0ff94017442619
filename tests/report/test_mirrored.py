"""A run's records come from its mirror; its model stays there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.report.runs_made import training_run
from velocity.checkpoints.mirror import send_records
from velocity.checkpoints.store import open_store
from velocity.errors import JobError, UserError
from velocity.report.facts import read_run
from velocity.report.mirrored import fetch_records, is_mirror
from velocity.runs.folder import RunFolder


def mirrored(folder: Path) -> tuple[RunFolder, Path]:
    """A complete run with a model, and the folder that it is mirrored to."""
    run, mirror = training_run(folder / "run"), folder / "mirror"
    run.model.mkdir()
    (run.model / "model.safetensors").write_bytes(b"weights")
    send_records(open_store(str(mirror)), run.path)
    return run, mirror


def test_records_come_and_the_model_stays(tmp_path: Path):
    run, mirror = mirrored(tmp_path)
    assert is_mirror(str(mirror)) and not is_mirror(str(run.path))
    assert is_mirror("s3://bucket/run")
    fetch_records(str(mirror), tmp_path / "here")
    assert {path.name for path in (tmp_path / "here").iterdir()} == {
        "job.yaml", "status.json", "metrics.jsonl", "plan.json", "environment.json", "deepspeed.json",
        "deepspeed-origins.json",
    }  # fmt: skip
    assert read_run(tmp_path / "here").steps == read_run(run.path).steps


def test_a_line_that_was_added_comes_with_the_next_look(tmp_path: Path):
    run, mirror = mirrored(tmp_path)
    fetch_records(str(mirror), tmp_path / "here")
    with run.metrics.open("a") as stream:
        stream.write(json.dumps({"step": 31, "loss": 0.5}) + "\n")
    send_records(open_store(str(mirror)), run.path)
    fetch_records(str(mirror), tmp_path / "here")
    assert read_run(tmp_path / "here").steps[-1]["step"] == 31


def test_an_address_without_a_run_is_refused(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="there is nothing of a run"):
        fetch_records(str(tmp_path / "empty"), tmp_path / "here")


def test_a_record_that_is_not_as_it_was_proven_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("velocity.checkpoints.results.PAUSE_SECONDS", 0.0)
    _, mirror = mirrored(tmp_path)
    (mirror / "run" / "metrics.jsonl").write_text("torn")
    with pytest.raises(JobError, match=r"metrics\.jsonl does not come as it was sent"):
        fetch_records(str(mirror), tmp_path / "here")
    shutil.rmtree(mirror / "run")
    with pytest.raises(JobError):
        fetch_records(str(mirror), tmp_path / "here")
