from __future__ import annotations

import json
from pathlib import Path

import pytest

from velocity.errors import UserError
from velocity.runs.folder import Measured, RunFolder


def test_a_second_holder_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with run.owned(), pytest.raises(UserError, match=r"held by process \d+ on"), RunFolder(tmp_path / "run").owned():
        pass
    with run.owned():
        pass  # it is free again


def test_rewinding_forgets_later_lines_and_a_torn_one(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in range(1, 6)]
    run.metrics.write_text("\n".join(lines) + '\n{"step": 6, "lo')
    run.rewind(3)
    assert [line["step"] for line in run.lines()] == [1, 2, 3]
    assert run.metrics.read_text().endswith("}\n")


def test_status_keeps_facts_from_state_to_state(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.status() == {"state": "new"}
    run.set_status("running", inputs="abc")
    run.set_status("complete", steps=3)
    assert run.status() == {"state": "complete", "inputs": "abc", "steps": 3}


def test_evaluations_are_the_first_and_the_last_of_each_set(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    rows = [{"step": step, "eval": {"unseen": {"perplexity": 10.0 - step}}} for step in (0, 3, 6)]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run.evaluations() == {"unseen": ({"perplexity": 10.0}, {"perplexity": 4.0})}


def test_results_are_the_measures_that_a_set_has_with_their_names_for_people(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    before = {"pairs": {"loss": 0.7, "accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6, "margin": 0.0,
                        "chosen_length": 9.0, "preference_accuracy": 0.4}}  # fmt: skip
    after = {"pairs": {"loss": 0.6, "accuracy": 0.8, "margin": 1.5, "chosen_length": 9.0, "preference_accuracy": 0.6}}
    rows = [
        {"step": 0, "eval": {**before, "text": {"loss": 1.0, "perplexity": 2.7, "tokens": 5}}},
        {"step": 1, "loss": 0.7},
        {"step": 2, "eval": {**after, "text": {"loss": 0.5, "perplexity": 1.6, "tokens": 5}}},
    ]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run.results() == [
        ("pairs", "reward accuracy", Measured(0.5, 0.4, 0.6), Measured(0.8)),
        ("pairs", "preference accuracy", Measured(0.4), Measured(0.6)),
        ("pairs", "reward margin", Measured(0.0), Measured(1.5)),
        ("text", "perplexity", Measured(2.7), Measured(1.6)),
    ]


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        (Measured(16.456, 14.2, 18.1), "16.46 (14.20–18.10)"),
        (Measured(16.456), "16.46"),
        (Measured(None), "not finite"),
        (Measured(None, 1.0, 2.0), "not finite"),
    ],
)
def test_what_was_measured_is_said_with_its_interval(measured: Measured, words: str) -> None:
    assert str(measured) == words


def test_a_run_that_was_not_evaluated_has_no_results(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.results() == []
    run.metrics.write_text(json.dumps({"step": 1, "loss": 0.7}) + "\n")
    assert run.results() == []


@pytest.mark.parametrize("name", ["model", "completions.jsonl", "completions.parquet"])
def test_the_result_of_a_run_is_its_model_or_its_completions(tmp_path: Path, name: str) -> None:
    run = RunFolder(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "shards").mkdir()
    assert run.result is None
    (tmp_path / name).touch()
    assert run.result == tmp_path / name
