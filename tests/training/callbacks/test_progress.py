"""Progress: a line now and then where nobody watches, a bar on a terminal, and the same lines in log.txt."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from velocity.training.callbacks.progress import ProgressReport


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(name="clock")
def _clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def tell(report: ProgressReport, step: int) -> None:
    report.on_step({"step": step, "loss": 2.5, "tokens_per_second": 1234.5})


def logged(folder: Path) -> list[str]:
    """The lines of log.txt without their time of day."""
    lines = (folder / "log.txt").read_text().splitlines()
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  "
    assert all(re.match(stamp, line) for line in lines), lines
    return [re.sub(f"^{stamp}", "", line) for line in lines]


def test_a_line_says_step_loss_speed_and_the_time_that_remains(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
):
    report = ProgressReport(tmp_path, total=20, done=10)
    clock.now += 10
    tell(report, 11)
    clock.now += 20
    tell(report, 12)
    report.close()
    # a run that went on at step 10 took 10 seconds for one step: nine more take 90; 30 for two: eight more take 120
    lines = [
        "step 11/20  loss 2.5000  1,234 tokens/s  90 s left",
        "step 12/20  loss 2.5000  1,234 tokens/s  120 s left",
    ]
    assert logged(tmp_path) == lines
    captured = capsys.readouterr()
    assert captured.err.splitlines() == lines
    assert captured.out == "", "progress goes to standard error"


def test_records_whose_loss_is_not_finite_are_named_at_once(tmp_path: Path, clock: Clock):
    report = ProgressReport(tmp_path, total=20, done=0)
    tell(report, 1)
    records = [f"a.jsonl:{number}" for number in range(6)]
    report.on_step({"step": 2, "loss": float("nan"), "tokens_per_second": 1.0, "not_finite": records})
    report.close()
    assert logged(tmp_path)[-1] == (
        "warning: step 2: not finite: the loss of a.jsonl:0, a.jsonl:1, a.jsonl:2, a.jsonl:3 (2 more)"
    )


def test_lines_are_ten_seconds_apart_but_the_last_step_has_one(tmp_path: Path, clock: Clock):
    report = ProgressReport(tmp_path, total=8, done=0)
    for step in range(1, 9):
        clock.now += 3
        tell(report, step)
    report.close()
    # told at 3 s, then not before 13 s, which is the fifth step at 15 s; the eighth is the last
    assert [line.split()[1] for line in logged(tmp_path)] == ["1/8", "5/8", "8/8"]


def test_an_evaluation_is_told_at_once(tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]):
    report = ProgressReport(tmp_path, total=8, done=0)
    result = {"loss": 1.0, "perplexity": 2.718, "tokens": 3}
    report.on_eval(0, {"unseen": result, "general": {**result, "perplexity": 9.0}})
    report.close()
    assert logged(tmp_path) == ["step 0  unseen: perplexity 2.72  general: perplexity 9.00"]
    assert "unseen: perplexity 2.72" in capsys.readouterr().err


def test_of_a_preference_evaluation_accuracies_and_the_margin_are_told(tmp_path: Path, clock: Clock):
    report = ProgressReport(tmp_path, total=8, done=0)
    result = {"loss": 0.6, "chosen_reward": 1.0, "margin": 1.234, "accuracy": 0.75, "preference_accuracy": 0.5}
    report.on_eval(4, {"unseen": {**result, "chosen_length": 31.5, "pairs": 64}})
    report.close()
    assert logged(tmp_path) == ["step 4  unseen: reward accuracy 0.75, preference accuracy 0.50, reward margin 1.23"]


def test_the_name_of_a_set_is_shown_as_it_is(tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]):
    report = ProgressReport(tmp_path, total=8, done=0)
    report.on_eval(0, {"cwe[/2024]": {"loss": 1.0, "perplexity": 2.0, "tokens": 3}})
    report.close()
    assert capsys.readouterr().err == "step 0  cwe[/2024]: perplexity 2.00\n"


def test_a_terminal_has_a_bar_and_the_log_has_the_lines(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FORCE_COLOR", "1")  # how rich is told that somebody watches
    monkeypatch.setenv("COLUMNS", "100")
    report = ProgressReport(tmp_path, total=3, done=1)
    for step in (2, 3):
        clock.now += 10
        tell(report, step)
    report.close()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    assert "3/3" in shown and "loss 2.5000" in shown
    assert "s left" not in shown, "the bar says it"
    assert len(logged(tmp_path)) == 2


def test_a_run_that_goes_on_adds_to_the_log(tmp_path: Path, clock: Clock):
    for step in (1, 2):
        report = ProgressReport(tmp_path, total=2, done=step - 1)
        clock.now += 10
        tell(report, step)
        report.close()
    assert len(logged(tmp_path)) == 2
