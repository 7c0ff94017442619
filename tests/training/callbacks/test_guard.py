"""A tracker that fails is said once, and ends no run."""

from __future__ import annotations

import pytest

from tests.running import Recorder
from velocity.training.callbacks.guard import Guarded


class Failing(Recorder):
    """Fails at its second step; says whether it was closed."""

    closed = False

    def on_step(self, line: object) -> None:
        if self.lines:
            raise ConnectionError("no route to host")
        self.lines.append({"step": 1})

    def close(self) -> None:
        self.closed = True


def test_a_tracker_that_fails_is_said_once_hears_no_more_and_is_closed(capsys: pytest.CaptureFixture[str]) -> None:
    inner = Failing()
    guarded = Guarded("wandb", inner)
    for step in (1, 2, 3):
        guarded.on_step({"step": step})
    guarded.on_eval(3, {"unseen": {"loss": 1.0}})
    guarded.close()
    assert (inner.lines, inner.evaluations, inner.closed) == ([{"step": 1}], [], True)
    said = capsys.readouterr().err
    assert said == "warning: wandb failed and hears no more; metrics.jsonl goes on: no route to host\n"


def test_a_tracker_hears_numbers_alone() -> None:
    inner = Recorder()
    Guarded("tensorboard", inner).on_step({"step": 3, "loss": float("nan"), "not_finite": ["a.jsonl:7"]})
    assert [list(line) for line in inner.lines] == [["step", "loss"]]


def test_a_tracker_that_works_hears_all() -> None:
    inner = Recorder()
    guarded = Guarded("mlflow", inner)
    guarded.on_phase("evaluating")
    guarded.on_eval(0, {"unseen": {"loss": 1.0}})
    guarded.on_step({"step": 1.0})
    assert inner.phases == ["evaluating"]
    assert inner.evaluations == [(0, {"unseen": {"loss": 1.0}})]
    assert inner.lines == [{"step": 1.0}]
