"""What was predicted beside what was measured, in plan.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from velocity.runs.prediction import compare, measured, record

LINES = [{"loss": 1.0, "memory_gib": 1.0 + 0.5 * step, "tokens_per_second": 10.0 * step} for step in range(1, 6)]
PLAN = {"chosen": {"device_bytes": 2**30, "tokens_per_second": 80.0}}


def test_the_first_steps_do_not_count_for_speed_and_the_highest_memory_does():
    assert measured([*LINES, {"step": 5, "eval": {}}]) == (3.5 * 2**30, 40.0)  # the median of 30, 40 and 50


def test_too_few_steps_tell_nothing():
    assert measured(LINES[:2]) is None


def test_a_ratio_is_measured_over_predicted():
    found = compare(PLAN, 3.5 * 2**30, 40.0)
    assert (found["memory_ratio"], found["speed_ratio"]) == (3.5, 0.5)


@pytest.mark.parametrize("plan", [{"chosen": None}, {}])
def test_without_a_choice_there_is_a_measurement_and_no_ratio(plan: dict[str, None]):
    found = compare(plan, 8.0, 40.0)
    assert (found["measured_bytes"], found["memory_ratio"], found["speed_ratio"]) == (8, None, None)


def test_what_was_measured_is_written_beside_the_plan(tmp_path: Path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(PLAN))
    record(path, LINES)
    assert json.loads(path.read_text()) == {**PLAN, "measured": compare(PLAN, 3.5 * 2**30, 40.0)}


def test_a_run_without_a_plan_stays_without(tmp_path: Path):
    record(tmp_path / "plan.json", LINES)
    assert not (tmp_path / "plan.json").exists()
