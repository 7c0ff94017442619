"""Runs side by side as tables."""

from __future__ import annotations

from pathlib import Path

from tests.report.runs_made import evaluate_run, training_run
from velocity.report.compare import differing_settings, measured, overview, paired, trained
from velocity.report.facts import Run, read_run


def evaluated(folder: Path) -> list[Run]:
    evaluate_run(folder / "stock", 0.44)
    evaluate_run(folder / "tuned", 0.55)
    return [read_run(folder / name) for name in ("stock", "tuned")]


def test_a_run_is_a_line_of_the_overview(tmp_path: Path):
    table = overview(evaluated(tmp_path))
    assert table.rows[0][:4] == ["stock", "evaluate", "runs/stock-model", "complete"]


def test_training_is_told_before_on_the_way_and_after(tmp_path: Path):
    table = trained([read_run(training_run(tmp_path / "run", steps=10).path)])
    assert table is not None
    # 24 falls to 12 in five equal parts: blocks from the highest to the lowest
    before, after = "24.00 (22.00 to 26.00)", "12.00 (10.00 to 14.00)"
    assert table.rows[0] == ["unseen", "perplexity", before, after, "−50.0 %", "█▇▅▄▂▁", "12.00 (step 10)"]
    assert table.rows[1][6] == "20.00 (step 0)", "the best was before training"


def test_several_trained_runs_are_named_in_each_line(tmp_path: Path):
    runs = [read_run(training_run(tmp_path / name, steps=10).path) for name in ("a", "b")]
    table = trained(runs)
    assert table is not None
    assert [row[2] for row in table.rows] == ["a", "b", "a", "b"]


def test_every_measure_has_a_column_a_run_with_its_interval(tmp_path: Path):
    table = measured(evaluated(tmp_path))
    assert table is not None
    assert list(table.head) == ["set", "measure", "rows", "stock", "tuned"]
    first, last = ["seen", "accuracy", "40"], ["arc_easy", "acc", "100", "50.0 % (46.0 % to 54.0 %)"]
    assert table.rows[0] == [*first, "44.0 % (41.0 % to 47.0 %)", "55.0 % (52.0 % to 58.0 %)"]
    assert table.rows[-1] == [*last, "50.0 % (46.0 % to 54.0 %)"]


def test_a_measure_that_a_run_lacks_is_a_dash(tmp_path: Path):
    stock, tuned = evaluated(tmp_path)
    stock.evaluation["sets"].pop("said")
    table = measured([stock, tuned])
    assert table is not None
    assert [row[3] for row in table.rows if row[0] == "said"] == ["–"]


def test_paired_differences_are_said_in_words(tmp_path: Path):
    words = "better by 11.0 points (95 %: 7.0 to 15.0)"
    found = {"seen": {"accuracy_per_token": {"difference": 0.11, "words": words}}}
    compared = [{"run": str(tmp_path / "tuned"), "with": str(tmp_path / "stock"), "sets": found}]
    table = paired(evaluated(tmp_path), compared)
    assert table is not None
    assert table.rows == [["tuned", "stock", "seen", "accuracy per token", words]]


def test_only_settings_that_differ_are_compared_and_never_the_output(tmp_path: Path):
    runs = [read_run(training_run(tmp_path / name, batch={"rows": rows}).path) for name, rows in (("a", 4), ("b", 8))]
    table = differing_settings(runs)
    assert table is not None
    assert table.rows == [["batch.rows", "4", "8"]]
    assert differing_settings(runs[:1]) is None


def test_runs_without_such_numbers_have_no_such_tables(tmp_path: Path):
    plain = read_run(training_run(tmp_path / "run").path)
    assert measured([plain]) is None and paired([plain], []) is None
    assert trained(evaluated(tmp_path)) is None
