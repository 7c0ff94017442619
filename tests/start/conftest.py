"""A run folder that a job has begun."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.making import write_job
from velocity.config.load import load_job
from velocity.config.resolved import render
from velocity.runs.folder import RunFolder


@pytest.fixture(name="run")
def _run(tmp_path: Path) -> RunFolder:
    found = RunFolder(tmp_path / "run")
    found.path.mkdir()
    found.job.write_text(render(load_job(write_job(tmp_path / "job.yaml"))))
    return found
