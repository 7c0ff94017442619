"""Which pictures a report has."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.report.runs_made import evaluate_run, generate_run, restarted, step_line, training_run
from velocity.report.facts import read_run
from velocity.report.figures import curves, evaluation_curves, intervals


def test_a_training_run_has_a_picture_of_each_quantity_with_its_plan(tmp_path: Path):
    run = training_run(tmp_path / "run", steps=100)
    restarted(run, 42)
    found = {one.title: one for one in curves([read_run(run.path)])}
    assert list(found) == ["Loss", "Learning rate", "Gradient norm", "Throughput, tokens a second", "Memory, GiB"]
    assert found["Memory, GiB"].caption == "55.5 → 55.5; planned 60.0 (dashed)"
    assert "planned 50,000 (dashed)" in found["Throughput, tokens a second"].caption
    assert found["Loss"].caption.endswith("dotted: a restart")
    assert "stroke-dasharray" in found["Memory, GiB"].svg


def test_a_plan_far_from_what_was_is_said_and_not_drawn(tmp_path: Path):
    run = training_run(tmp_path / "run")
    run.plan.write_text(json.dumps({"chosen": {"tokens_per_second": 5e6, "device_bytes": 60 * 2**30}}))
    captions = [one.caption for one in curves([read_run(run.path)])]
    assert any("planned 5,000,000 (outside of the picture)" in caption for caption in captions)


def test_several_runs_share_each_picture_in_colours_that_a_legend_names(tmp_path: Path):
    runs = [read_run(training_run(tmp_path / name).path) for name in ("a", "b")]
    for figure in curves(runs):
        assert list(figure.legend) == [("a", 0), ("b", 1)]
        assert "var(--c0)" in figure.svg and "var(--c1)" in figure.svg


def test_a_gradient_norm_with_a_steep_beginning_is_logarithmic(tmp_path: Path):
    run = training_run(tmp_path / "run")
    lines = [step_line(step, 30, grad_norm=500.0 if step == 1 else 1.0) for step in range(1, 31)]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "Gradient norm (logarithmic)" in [one.title for one in curves([read_run(run.path)])]


def test_losses_that_were_not_finite_are_counted(tmp_path: Path):
    run = training_run(tmp_path / "run")
    lines = [step_line(step, 30, **({"loss": None} if step == 5 else {})) for step in range(1, 31)]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "1 not finite" in curves([read_run(run.path)])[0].caption


def test_a_generate_run_has_pictures_of_its_speed_and_its_memory(tmp_path: Path):
    run = read_run(generate_run(tmp_path / "run", [("a", "b")]).path)
    titles = [one.title for one in curves([run])]
    assert titles == ["Throughput, tokens a second", "Throughput, rows a second", "Memory, GiB"]


def test_evaluations_of_a_run_share_a_picture_a_measure_and_those_of_several_one_a_set(tmp_path: Path):
    runs = [read_run(training_run(tmp_path / name).path) for name in ("a", "b")]
    assert [(one.title, list(one.legend)) for one in evaluation_curves(runs[:1])] == [
        ("Perplexity", [("unseen", 0), ("general", 1)])
    ]
    assert [one.title for one in evaluation_curves(runs)] == ["unseen: perplexity", "general: perplexity"]


def test_evaluations_of_a_run_are_shaded_by_their_intervals_where_they_have_some(tmp_path: Path):
    run = training_run(tmp_path / "run")
    with_bounds = evaluation_curves([read_run(run.path)])[0]
    run.metrics.write_text(re.sub(r"perplexity_(low|high)", r"\1", run.metrics.read_text()))
    without = evaluation_curves([read_run(run.path)])[0]
    assert (with_bounds.caption, without.caption) == ("shaded: 95 % intervals", "")
    assert with_bounds.svg.count("FillBetween") == 2 and "FillBetween" not in without.svg


def test_one_evaluation_alone_is_no_curve(tmp_path: Path):
    run = training_run(tmp_path / "run")
    run.metrics.write_text(run.metrics.read_text().splitlines()[0] + "\n")
    assert evaluation_curves([read_run(run.path)]) == []


def test_each_measure_is_a_picture_with_a_dot_a_run_and_its_interval(tmp_path: Path):
    evaluate_run(tmp_path / "stock", 0.44)
    evaluate_run(tmp_path / "tuned", 0.55)
    found = intervals([read_run(tmp_path / name) for name in ("stock", "tuned")])
    assert [one.title for one in found] == [
        "Accuracy, %", "Accuracy per token, %", "Perplexity", "Bits per byte", "F1, %", "Acc, %",
    ]  # fmt: skip
    assert "stock: 44.0 %, 95 %: 41.0 % to 47.0 %" in found[0].svg, "in words for those who do not see it"
    assert list(found[0].legend) == [("stock", 0), ("tuned", 1)]


def test_a_run_with_nothing_to_tell_has_no_picture(tmp_path: Path):
    run = training_run(tmp_path / "run")
    run.metrics.unlink()
    plain = read_run(run.path)
    assert curves([plain]) == evaluation_curves([plain]) == intervals([plain]) == []
