"""How many optimizer steps a job takes, from each way to say when training ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.running import make_job
from velocity.data.loader import TrainLoader
from velocity.training.total import total_steps


class Loader(TrainLoader):
    """Ten packed rows an epoch, in global batches of four."""

    def __init__(self) -> None:
        self.rows = 4

    def steps(self, epochs: float) -> int:
        return -int(-epochs * 10 // 4)


def total(folder: Path, duration: dict[str, Any], **changes: Any) -> int:
    return total_steps(make_job(folder, {"duration": duration, **changes}), Loader())


def test_steps_are_steps(tmp_path: Path):
    assert total(tmp_path, {"steps": 7}) == 7


def test_epochs_are_the_loaders_to_count(tmp_path: Path):
    assert total(tmp_path, {"epochs": 2}) == 5  # 20 rows, 4 a step
    assert total(tmp_path, {"epochs": 0.5}) == 2  # 5 rows: the second step goes beyond


@pytest.mark.parametrize(("tokens", "steps"), [(1, 1), (1024, 1), (1025, 2), (10240, 10)])
def test_tokens_are_divided_by_those_of_a_global_batch_and_rounded_up(tmp_path: Path, tokens: int, steps: int):
    # 4 rows of 256 tokens are 1024 a step
    assert total(tmp_path, {"tokens": tokens}) == steps


def test_a_global_batch_in_tokens_is_as_large_as_the_job_says(tmp_path: Path):
    assert total(tmp_path, {"tokens": 1025}, batch={"tokens": 512, "micro": 2}) == 3  # 1025 / 512 = 2.002
