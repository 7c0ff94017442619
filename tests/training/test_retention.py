"""Which of a run's checkpoints are kept."""

from __future__ import annotations

import json
from pathlib import Path

from velocity.config.sections import CheckpointConfig
from velocity.runs.folder import RunFolder
from velocity.training.retention import Retention, judged_by


def test_the_newest_are_kept_and_every_third_and_the_best() -> None:
    retention = Retention(CheckpointConfig(keep=2, keep_every=30, best="unseen"))
    for step, loss in {10: 5.0, 20: 2.0, 30: 4.0, 100: 4.0}.items():
        retention.note(step, {"unseen": loss, "general": -loss})
    assert retention.kept(range(10, 101, 10)) == {20, 30, 60, 90, 100}


def test_fewer_than_are_to_be_kept_are_all_kept() -> None:
    assert Retention(CheckpointConfig(keep=3)).kept([]) == set()
    assert Retention(CheckpointConfig(keep=3)).kept([1, 2]) == {1, 2}


def test_the_best_is_of_those_that_are_there() -> None:
    retention = Retention(CheckpointConfig(keep=1, best="unseen"), {1: 1.0, 2: 2.0, 3: 3.0})
    assert retention.kept([2, 3, 4]) == {2, 4}


def test_the_losses_are_those_of_the_set_that_decides(tmp_path: Path) -> None:
    lines = [{"step": step, "eval": {"unseen": {"loss": loss}}} for step, loss in ((2, 1.0), (4, 3.0))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [{"step": 1}, *lines]))
    run = RunFolder(tmp_path)
    assert judged_by(run, CheckpointConfig(best="unseen")) == {2: 1.0, 4: 3.0}
    assert judged_by(run, CheckpointConfig()) == {}
