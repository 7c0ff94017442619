"""metrics.jsonl holds whole lines, at once, and goes on where it ended."""

from __future__ import annotations

import json
from pathlib import Path

from velocity.training.callbacks.jsonl import JsonlMetrics

LINE = {"step": 1, "loss": 1 / 3, "tokens": 10, "grad_norm": 2.0}
FOUND = {"unseen": {"loss": 1.0, "perplexity": 2.718281828, "tokens": 5}}


def read(path: Path) -> list[object]:
    text = path.read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def test_steps_and_evaluations_are_lines_that_read_back_to_the_last_bit(tmp_path: Path):
    metrics = JsonlMetrics(tmp_path / "metrics.jsonl")
    metrics.on_eval(0, FOUND)
    metrics.on_step(LINE)
    metrics.close()
    assert read(tmp_path / "metrics.jsonl") == [{"step": 0, "eval": FOUND}, LINE]


def test_a_line_is_there_as_soon_as_it_is_told_not_only_at_the_end(tmp_path: Path):
    metrics = JsonlMetrics(tmp_path / "metrics.jsonl")
    metrics.on_step(LINE)
    assert read(tmp_path / "metrics.jsonl") == [LINE]
    metrics.close()


def test_a_run_that_goes_on_keeps_the_lines_before(tmp_path: Path):
    for number in (1, 2):
        metrics = JsonlMetrics(tmp_path / "metrics.jsonl")
        metrics.on_step({**LINE, "step": number})
        metrics.close()
    assert read(tmp_path / "metrics.jsonl") == [{**LINE, "step": 1}, {**LINE, "step": 2}]


def test_what_is_not_finite_is_null_because_json_has_no_word_for_it(tmp_path: Path):
    metrics = JsonlMetrics(tmp_path / "metrics.jsonl")
    metrics.on_step({"step": 1, "loss": float("nan"), "grad_norm": float("inf"), "tokens": 3})
    metrics.on_eval(1, {"unseen": {"loss": float("-inf"), "perplexity": 2.0}})
    metrics.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert read(tmp_path / "metrics.jsonl") == [
        {"step": 1, "loss": None, "grad_norm": None, "tokens": 3},
        {"step": 1, "eval": {"unseen": {"loss": None, "perplexity": 2.0}}},
    ]
