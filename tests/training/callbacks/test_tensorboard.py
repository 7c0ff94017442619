"""TensorBoard's event files, read back with TensorBoard's own reader."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from velocity.training.callbacks.tensorboard import TensorBoard


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of each scalar."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events: Any = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_steps_and_evaluations_are_scalars_at_their_step(tmp_path: Path):
    board = TensorBoard(tmp_path, 0)
    found = {"unseen": {"loss": 2.0, "perplexity": math.exp(2.0), "tokens": 5}}
    board.on_eval(0, found)
    for number in (1, 2):
        board.on_step({"step": number, "loss": 3.0 / number, "learning_rate": 0.5})
    board.on_eval(2, found)
    board.close()
    assert read(tmp_path) == {
        "train/loss": [(1, 3.0), (2, 1.5)],
        "train/learning_rate": [(1, 0.5), (2, 0.5)],
        "eval/unseen/loss": [(0, 2.0), (2, 2.0)],
        "eval/unseen/perplexity": [(0, pytest.approx(7.389056)), (2, pytest.approx(7.389056))],
        "eval/unseen/tokens": [(0, 5.0), (2, 5.0)],
    }


def test_every_metric_of_a_preference_run_is_a_curve(tmp_path: Path):
    board = TensorBoard(tmp_path, 0)
    board.on_step({"step": 1, "loss": 0.5, "margin": 0.25, "tokens": 31, "pairs": 8})
    board.on_eval(1, {"unseen": {"loss": 0.5, "accuracy": 0.75, "margin": 1.5, "pairs": 64}})
    board.close()
    assert read(tmp_path) == {
        "train/loss": [(1, 0.5)], "train/margin": [(1, 0.25)], "train/tokens": [(1, 31.0)], "train/pairs": [(1, 8.0)],
        "eval/unseen/loss": [(1, 0.5)], "eval/unseen/accuracy": [(1, 0.75)], "eval/unseen/margin": [(1, 1.5)],
        "eval/unseen/pairs": [(1, 64.0)],
    }  # fmt: skip


def test_a_run_that_goes_on_adds_to_what_is_there_and_hides_the_steps_that_are_done_again(tmp_path: Path):
    for done, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        board = TensorBoard(tmp_path, done)
        for number in steps:
            board.on_step({"step": number, "loss": float(number + done)})
        board.close()
    assert read(tmp_path) == {"train/loss": [(1, 1.0), (2, 2.0), (3, 5.0), (4, 6.0)]}
