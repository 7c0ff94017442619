"""The numbers that stand first."""

from __future__ import annotations

import json
from pathlib import Path

from tests.report.runs_made import evaluate_run, generate_run, restarted, training_lines, training_run
from velocity.report.facts import Run, read_run
from velocity.report.headline import change, evaluations, facts, interval, measure


def told(run: Run) -> dict[str, tuple[str, str]]:
    return {fact.name: (fact.value, fact.note) for fact in facts(run)}


def test_a_training_run_says_what_its_evaluations_came_to_and_holds_the_plan_against_what_was(tmp_path: Path):
    run = training_run(tmp_path / "run", steps=30)
    restarted(run, 12)
    found = told(read_run(run.path))
    assert found["unseen: perplexity"] == ("12.00", "−50.0 %, from 24.00; 95 %: 10.00 to 14.00")
    assert found["general: perplexity"] == ("21.00", "+5.0 %, from 20.00; 95 %: 19.00 to 23.00")
    assert (found["steps"][0], found["tokens trained on"][0], found["restarts"][0]) == ("30", "30,000", "1")
    assert found["memory"] == ("55.5 GiB", "0.93 × the 60.0 planned")  # 55.5 / 60 = 0.925
    assert found["tokens a second"][1].endswith("× the 50,000 planned")


def test_a_run_without_evaluations_says_where_its_loss_went(tmp_path: Path):
    run = training_run(tmp_path / "run")
    lines = [line for line in training_lines(30) if "loss" in line]
    lines[0]["loss"], lines[-1]["loss"] = 3.0, None
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert told(read_run(run.path))["loss"] == ("not finite", "from 3.000")


def test_a_generate_run_says_how_its_completions_ended(tmp_path: Path):
    found = told(read_run(generate_run(tmp_path / "run", [("a?", "b"), ("c?", "d")]).path))
    assert found["completions"] == ("2", "ended: 2 by stop")
    assert found["memory"][0] == "1.50 GiB"


def test_an_evaluate_run_says_the_main_measure_of_each_set_with_its_interval(tmp_path: Path):
    found = told(read_run(evaluate_run(tmp_path / "run", 0.44).path))
    assert found["seen: accuracy"] == ("44.0 %", "95 %: 41.0 % to 47.0 %")
    # 20 - 8 x 0.44 = 16.48, give or take 0.6
    assert found["unseen: perplexity"] == ("16.48", "95 %: 15.88 to 17.08")
    assert found["arc_easy: acc"] == ("50.0 %", "95 %: 46.0 % to 54.0 %")


def test_evaluations_are_points_over_steps(tmp_path: Path):
    found = evaluations(read_run(training_run(tmp_path / "run", steps=10).path))
    assert found["unseen", "perplexity"][:2] == [(0, (24.0, 22.0, 26.0)), (2, (21.6, 19.6, 23.6))]
    assert list(found) == [("unseen", "perplexity"), ("general", "perplexity")], "what is not for people is left out"


def test_a_perplexity_changes_by_a_share_an_accuracy_by_points_and_a_margin_by_a_difference():
    assert change("perplexity", 20.0, 15.0) == "−25.0 %, from 20.00"
    assert change("accuracy", 0.5, 0.445) == "−5.5 points, from 50.0 %"
    assert change("margin", 0.0, 1.5) == "+1.5, from 0.000"
    assert change("perplexity", None, 15.0) == ""


def test_without_an_interval_nothing_is_said_of_one():
    assert interval("f1", {"value": 0.5}) == ""
    assert measure("f1", None) == "not finite"
    assert measure("bits_per_byte", 0.98765) == "0.988"
