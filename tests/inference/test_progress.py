"""How far a job is, as lines: sums and rates by hand, over several attempts and several ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from velocity.distributed.comm import Ranks, Tally
from velocity.inference import progress
from velocity.inference.progress import Progress, Report

CPU = torch.device("cpu")


class Clock:
    """Time that passes when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.slept = 100.0, 0
        monkeypatch.setattr("velocity.inference.progress.time.monotonic", lambda: self.now)
        monkeypatch.setattr("velocity.inference.progress.time.sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now, self.slept = self.now + seconds, self.slept + 1


@pytest.fixture(name="clock")
def _clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def report_in(folder: Path, said: list[str], total: int = 10, done: int = 4) -> Report:
    return Report(folder / "metrics.jsonl", folder / "log.txt", total, done, said.append)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_line_counts_what_was_done_before_and_its_rates_are_those_of_this_attempt(tmp_path: Path, clock: Clock):
    said: list[str] = []
    report = report_in(tmp_path, said)
    clock.now += 20
    report.tell(rows=2, tokens=80, memory_gib=1.23456)
    report.close()
    # 4 rows before and 2 in 20 s: 0.1 a second, so the 4 that are left take 40 s; 80 tokens in 20 s
    assert lines(tmp_path) == [
        {"step": 6, "rows": 2, "seconds": 20.0, "tokens": 80, "rows_per_second": 0.1, "tokens_per_second": 4.0,
         "memory_gib": 1.235, "seconds_left": 40.0},
    ]  # fmt: skip
    assert said == ["row 6/10  0.10 rows/s  4 tokens/s  40 s left"]
    assert (tmp_path / "log.txt").read_text().endswith(f" {said[0]}\n")


def test_before_the_first_row_and_behind_the_last_nothing_is_said_to_be_left(tmp_path: Path, clock: Clock):
    said: list[str] = []
    report = report_in(tmp_path, said)
    report.tell(0, 0, 0.0)  # in no time at all
    clock.now += 3
    report.tell(6, 60, 0.0)
    report.close()
    assert said == ["row 4/10  0.00 rows/s  0 tokens/s", "row 10/10  2.00 rows/s  20 tokens/s"]
    assert all("seconds_left" not in line for line in lines(tmp_path))


def test_a_line_is_due_some_time_after_the_last_one_and_is_there_at_once(tmp_path: Path, clock: Clock):
    report = report_in(tmp_path, [])
    look = Progress(Tally(Ranks()), lambda: False, report, CPU, counts=True)
    for _ in range(3):
        look.made(5)
        clock.now += progress.EVERY_SECONDS / 2
    assert [line["tokens"] for line in lines(tmp_path)] == [15], "after 10 s, before the third 5 s are over"
    look.close()
    assert [line["tokens"] for line in lines(tmp_path)] == [15, 15]


def test_a_second_attempt_goes_on_in_the_same_files(tmp_path: Path, clock: Clock):
    for done in (0, 4):
        report = report_in(tmp_path, [], done=done)
        clock.now += 1
        report.tell(4, 4, 0.0)
        report.close()
    assert [line["step"] for line in lines(tmp_path)] == [4, 8]
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 2


def test_rows_count_once_whatever_the_number_of_their_samples(tmp_path: Path, clock: Clock):
    tally = Tally(Ranks())
    look = Progress(tally, lambda: False, report_in(tmp_path, []), CPU, counts=True)
    for sample in (0, 1, 2):
        look.row(sample == 0)
    look.close()
    assert tally.add("rows", 0) == 1
    assert lines(tmp_path)[-1]["rows"] == 1


def test_of_a_group_that_shares_a_model_one_rank_counts():
    tally = Tally(Ranks())
    for leads in (True, False):
        look = Progress(tally, lambda: False, None, CPU, counts=leads)
        look.made(7)
        look.row(True)
        look.close()
    assert [tally.add(name, 0) for name in ("tokens", "rows")] == [7, 1]


def test_the_first_rank_stays_until_the_others_have_left_and_tells_how_far_they_are(tmp_path: Path, clock: Clock):
    tally = Tally(Ranks())
    report = report_in(tmp_path, [])

    def stopping() -> bool:  # asked between two looks; meanwhile another rank writes
        tally.add("tokens", 10)
        if clock.slept == 60:
            tally.add("left", 2)
        return False

    look = Progress(tally, stopping, report, CPU, counts=True)
    assert look.leave(Ranks(0, 0, 3))
    assert clock.slept == 61
    assert len(lines(tmp_path)) == 1, "60 looks of 0.2 s are 12 s: one line was due"
    assert lines(tmp_path)[0]["tokens"] > 0


def test_only_the_first_rank_waits_not_alone_and_not_where_it_is_stopped(clock: Clock):
    left = [Progress(Tally(Ranks()), lambda: True, None, CPU, counts=True).leave(ranks)
            for ranks in (Ranks(), Ranks(1, 1, 2), Ranks(0, 0, 2))]  # fmt: skip
    assert left == [True, True, False]
    assert clock.slept == 0


def test_who_is_asked_to_stop_is_who_the_job_asks():
    asked = iter([False, True])
    look = Progress(Tally(Ranks()), lambda: next(asked), None, CPU, counts=True)
    assert [look.stopping(), look.stopping()] == [False, True]
