"""What a person is told of an evaluate job's run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.evaluating import claimed, evaluation_folder, planned, write_evaluate_job
from velocity.evaluation.show import number, print_compared, print_summary, summarise
from velocity.runs.folder import RunFolder

FIGURES = {
    "retrieval": {"passages": 3, "path": "corpus.jsonl"},
    "sets": {"seen": {"kind": "choices", "rows": 40, "measures": {
        "accuracy": {"value": 0.44, "low": 0.3, "high": 0.59, "better": "higher"}}}},
    "benchmarks": {"mine": {"rows": 7, "measures": {
        "word_perplexity": {"value": 12.345, "low": None, "high": None, "better": "lower"}}}},
}  # fmt: skip


@pytest.fixture(name="run")
def _run(tmp_path: Path) -> RunFolder:
    return claimed(planned(write_evaluate_job(evaluation_folder(tmp_path, 4) / "job.yaml")))


def test_figures_are_told_with_their_intervals(run: RunFolder, capsys: pytest.CaptureFixture[str]):
    run.evaluation.write_text(json.dumps(FIGURES))
    run.set_status("complete")
    print_summary(summarise(run.path))
    told = " ".join(capsys.readouterr().out.split())
    assert "complete" in told and "with 3 passages of corpus.jsonl a question" in told
    assert "44.0% │ 30.0% to 59.0%" in told
    assert "word perplexity │ 12.35 │ – to –" in told


def test_a_run_that_is_not_done_has_no_figures_yet(run: RunFolder, capsys: pytest.CaptureFixture[str]):
    print_summary(summarise(run.path))
    assert "no figures yet" in capsys.readouterr().out


def test_a_difference_is_told_in_words(capsys: pytest.CaptureFixture[str]):
    print_compared({"run": "b", "with": "a", "sets": {"seen": {"accuracy": {"words": "better by 3.0 points"}}}})
    assert "b against a" in (told := capsys.readouterr().out)
    assert "seen, accuracy: better by 3.0 points" in told


@pytest.mark.parametrize(("measure", "value", "said"), [
    ("accuracy_per_token", 0.5, "50.0%"), ("acc", 0.5, "50.0%"), ("perplexity", 16.456, "16.46"),
    ("bits_per_byte", 1.2345, "1.234"), ("f1", None, "–"),
])  # fmt: skip
def test_a_share_is_told_in_per_cent(measure: str, value: float | None, said: str):
    assert number(measure, value) == said
