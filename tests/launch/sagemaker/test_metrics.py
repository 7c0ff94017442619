"""The curves that SageMaker reads out of a job's lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.launch.sagemaker.jobs import GENERATE, HOME, LAUNCH, SFT, submission
from velocity.config.job import Job
from velocity.inference.progress import Report
from velocity.launch.sagemaker.metrics import definitions
from velocity.training.callbacks.progress import ProgressReport


def read(jobs: list[Job], text: str) -> dict[str, float]:
    """What SageMaker reads out of a line."""
    found = ((one["Name"], re.search(one["Regex"], text)) for one in definitions(jobs))
    return {name: float(match[1]) for name, match in found if match}


def jobs_of(*jobs: dict[str, Any]) -> list[Job]:
    return list(submission(HOME, list(jobs), LAUNCH).jobs)


LINE = {"step": 7, "loss": 2.34567, "tokens_per_second": 12_345.6, "skipped": 2}
PAIRS = {**SFT, "task": "preference", "batch": {"rows": 4}}


@pytest.fixture(name="report")
def _report(tmp_path: Path) -> Iterator[ProgressReport]:
    made = ProgressReport(tmp_path, total=7, done=0)
    yield made
    made.close()


def test_the_loss_is_read_out_of_the_line_of_a_step(report: ProgressReport):
    report.on_step(LINE)
    line = Path(report.log.name).read_text()
    assert read(jobs_of(SFT), line) == {"train:loss": 2.3457}


def test_each_evaluation_set_has_a_curve_of_its_own(report: ProgressReport):
    report.on_eval(7, {"unseen": {"loss": 1.0, "perplexity": 12.5}, "general": {"loss": 2.0, "perplexity": 1e4}})
    line = Path(report.log.name).read_text()
    assert read(jobs_of(SFT), line) == {"eval:unseen:perplexity": 12.5, "eval:general:perplexity": 10000.0}


def test_a_preference_jobs_measures_are_curves_too(report: ProgressReport):
    report.on_eval(7, {"unseen": {"loss": 1.0, "accuracy": 0.75, "margin": -1.5}})
    line = Path(report.log.name).read_text()
    assert read(jobs_of(PAIRS), line) == {"eval:unseen:reward_accuracy": 0.75, "eval:unseen:reward_margin": -1.5}


def test_the_rate_of_rows_is_read_out_of_a_generate_jobs_line(tmp_path: Path):
    said: list[str] = []
    report = Report(tmp_path / "metrics.jsonl", tmp_path / "log.txt", 5000, 1000, said.append)
    report._started -= 10
    report.tell(rows=250, tokens=90_000, memory_gib=1.0)
    report.close()
    assert read(jobs_of(GENERATE), said[0])["generate:rows_per_second"] == pytest.approx(25.0, rel=0.01)


def test_no_curve_is_read_out_of_other_lines():
    assert read(jobs_of(SFT), json.dumps({"why": "saving a checkpoint …"})) == {}
