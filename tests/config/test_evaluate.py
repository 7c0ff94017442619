"""What an evaluate job may say, and what is refused with what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.evaluating import job_values, write_evaluate_job
from velocity.config.evaluate import EvaluateJob
from velocity.config.load import load_job
from velocity.errors import UserError


def test_a_bare_path_is_a_set_of_texts(tmp_path: Path):
    job = EvaluateJob.model_validate(job_values(tmp_path))
    assert {name: one.kind for name, one in job.data.eval.items()} == {
        "texts": "perplexity", "choices": "choices", "pairs": "preference", "said": "answers",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.eval": {}}, "nothing is measured"),
        ({"data.eval": {"a/b": "x.jsonl"}}, "cannot name a set"),
        ({"data.eval": {"a": {"path": "x", "kind": "choice"}}}, "unknown kind of set"),
        ({"data.eval": {"a": {"path": "x", "kind": "answers"}}}, "nothing scores these answers"),
        ({"data.eval": {"a": {"path": "x", "kind": "answers", "pattern": "("}}}, "not a regular expression"),
        ({"data.eval": {"a": {"path": "x", "kind": "answers", "function": "score"}}}, "FILE.py:NAME"),
        ({"data.eval": {"a": {"path": "x", "metrics": ["f1"]}}}, "metrics"),
        ({"benchmarks": {"tasks": []}}, "name at least one task"),
        ({"generation.completions": 2, "generation.temperature": 1.0}, "generation.completions=2 does not go with"),
        ({"generation.beams": 2}, "generation.beams=2 does not go with"),
        (
            {"generation.engine": "deepspeed", "strategy": {"kernel_injection": True}},
            "kernel_injection does not go with",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path: Path, changes: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        load_job(write_evaluate_job(tmp_path / "job.yaml", changes))


def test_a_benchmark_alone_is_enough(tmp_path: Path):
    job = load_job(
        write_evaluate_job(tmp_path / "job.yaml", {"data.eval": {}, "benchmarks": {"tasks": "arc_easy"}})
    ).job
    assert job.benchmarks.tasks == ("arc_easy",)
    assert job.answers


def test_only_sets_of_answers_make_the_model_write(tmp_path: Path):
    assert EvaluateJob.model_validate(job_values(tmp_path)).answers
    assert not EvaluateJob.model_validate(job_values(tmp_path, {"data.eval": {"a": "x.jsonl"}})).answers
