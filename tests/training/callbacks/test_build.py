"""A job's callbacks: metrics and progress always, a tracker where it is named, and a remedy where it is missing."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, get_args

import pytest

from velocity.config.sections import Tracker
from velocity.errors import UserError
from velocity.training.callbacks.build import build_callbacks, check_installed
from velocity.training.callbacks.callback import Callback
from velocity.training.callbacks.guard import Guarded


def names(folder: Path, *tracking: str) -> list[str]:
    job: dict[str, Any] = {"tracking": list(tracking)}
    callbacks: list[Callback] = build_callbacks(folder, job, total=2, done=0)
    for callback in callbacks:
        callback.close()
    return [type(callback.inner if isinstance(callback, Guarded) else callback).__name__ for callback in callbacks]


def test_metrics_and_progress_are_told_always(tmp_path: Path):
    assert names(tmp_path) == ["JsonlMetrics", "ProgressReport", "PredictionCheck"]
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "log.txt"}


def test_tensorboard_is_told_where_the_job_says_so(tmp_path: Path):
    assert names(tmp_path, "tensorboard") == ["JsonlMetrics", "ProgressReport", "PredictionCheck", "TensorBoard"]
    assert list((tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_is_refused_with_the_command_that_installs_it(tracker: str):
    assert importlib.util.find_spec(tracker) is None, "the tests' environment does without"
    with pytest.raises(UserError) as caught:
        check_installed(["tensorboard", tracker])
    assert str(caught.value).splitlines() == [
        f"tracking: {tracker} is not installed",
        "  where: tracking",
        "  fix:   pip install 'ProfoundVelocity[tracking]'",
    ]


def test_every_tracker_that_a_job_may_name_is_tried_above():
    assert set(get_args(Tracker)) == {"tensorboard", "wandb", "mlflow"}
