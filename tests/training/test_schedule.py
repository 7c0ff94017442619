from __future__ import annotations

import pytest

from velocity.config.sections import SGDConfig
from velocity.training.schedule import learning_rate, warmup_steps


def _config(**changes: object) -> SGDConfig:
    return SGDConfig.model_validate({"learning_rate": 1.0, "warmup": 0, **changes})


def test_warmup_rises_in_equal_parts_to_the_peak() -> None:
    rates = [learning_rate(_config(warmup=4, schedule="constant"), step, 10) for step in range(6)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_a_warmup_below_one_is_a_share_of_the_run() -> None:
    assert warmup_steps(_config(warmup=0.1), 50) == 5
    assert warmup_steps(_config(warmup=7), 50) == 7


def test_linear_falls_in_equal_parts() -> None:
    assert [learning_rate(_config(schedule="linear"), step, 4) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]


def test_cosine_is_half_way_down_in_the_middle() -> None:
    assert learning_rate(_config(schedule="cosine"), 0, 10) == 1.0
    assert learning_rate(_config(schedule="cosine"), 5, 10) == pytest.approx(0.5)


def test_final_is_the_share_of_the_peak_that_remains() -> None:
    # linear at half of the way between 1.0 and 0.2
    assert learning_rate(_config(schedule="linear", final=0.2), 5, 10) == pytest.approx(0.6)


def test_wsd_holds_the_peak_and_decays_over_the_last_share() -> None:
    rates = [learning_rate(_config(schedule="wsd", decay=0.4), step, 10) for step in range(10)]
    assert rates[:7] == [1.0] * 7
    assert rates[7:] == pytest.approx([0.75, 0.5, 0.25])
