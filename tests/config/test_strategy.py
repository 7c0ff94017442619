"""What a strategy may be; everything is the planner's unless it is said."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from velocity.config.strategy import StrategyConfig


def test_all_of_a_strategy_is_the_planners_to_choose():
    assert set(StrategyConfig().model_dump().values()) == {"auto"}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_zero_stage_can_be_said(stage: int):
    assert StrategyConfig.model_validate({"zero": stage}).zero == stage


@pytest.mark.parametrize(
    "values", [{"zero": 4}, {"zero": -1}, {"precision": "fp8"}, {"recompute": True}, {"stage": 1}, {"offload": "cpu"}]
)
def test_what_is_no_strategy_is_refused(values: dict[str, Any]):
    with pytest.raises(ValidationError, match=next(iter(values))):
        StrategyConfig.model_validate(values)
