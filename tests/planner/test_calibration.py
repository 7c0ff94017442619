"""What runs teach, by hand: one factor for what lies beside the states, one for speed, their geometric mean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from velocity.errors import UserError
from velocity.planner.calibration import LEARNED, MOST, learn, measured, read
from velocity.planner.memory import Parts
from velocity.runs.folder import RunFolder

PREDICTED = Parts(parameters=100, optimizer=200, activations=50, allowance=50)  # 300 of states, 100 beside them


def test_nothing_was_learned_yet(tmp_path: Path):
    assert read(tmp_path / "none.json", "gpu H100") == {}
    (tmp_path / "torn.json").write_text("{")
    assert read(tmp_path / "torn.json", "gpu H100") == {}


def test_memory_teaches_what_lies_beside_the_states_and_speed_itself(tmp_path: Path):
    file = tmp_path / "cache" / "calibration.json"
    learn(file, "gpu H100", PREDICTED, 1000.0, (500.0, 800.0))  # (500 - 300) / 100, 800 / 1000
    assert read(file, "gpu H100") == {**dict.fromkeys(LEARNED, 2.0), "speed": 0.8}
    assert read(file, "gpu A100") == {}


def test_runs_count_alike(tmp_path: Path):
    file = tmp_path / "calibration.json"
    learn(file, "cpu", PREDICTED, 1000.0, (700.0, 4000.0))
    learn(file, "cpu", PREDICTED, 1000.0, (400.0, 1000.0))
    found = read(file, "cpu")
    assert (found["activations"], found["speed"]) == (2.0, 2.0)  # of 4 and 1
    assert json.loads(file.read_text())["cpu"]["runs"] == 2


def test_a_factor_is_bounded(tmp_path: Path):
    learn(tmp_path / "c.json", "cpu", PREDICTED, 1.0, (1e9, 1e9))
    assert read(tmp_path / "c.json", "cpu")["speed"] == MOST


def test_a_run_is_measured_by_its_highest_memory_and_its_median_speed_behind_the_first_steps(tmp_path: Path):
    rates = [1.0, 1.0, 100.0, 300.0, 120.0]
    lines = [{"step": n, "loss": 1, "memory_gib": 1 + n % 3, "tokens_per_second": rate} for n, rate in enumerate(rates)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert measured(RunFolder(tmp_path)) == (3 * 2**30, 120.0)
    (tmp_path / "metrics.jsonl").write_text(json.dumps(lines[0]) + "\n")
    with pytest.raises(UserError, match="has not done more than 2 steps"):
        measured(RunFolder(tmp_path))
