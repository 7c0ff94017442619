"""What a strategy may be; everything is the planner's unless it is said."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from velocity.config.strategy import StrategyConfig


def test_the_spread_is_the_planners_to_choose_and_nothing_that_changes_the_arithmetic_is():
    said = StrategyConfig().model_dump()
    chosen = {"zero", "tensor", "pipeline", "sequence", "precision", "recompute"}
    assert {name for name, value in said.items() if value == "auto"} == chosen
    assert (said["offload"]["optimizer"], said["offload"]["parameters"]) == ("auto", "auto")
    assert (said["states"], said["compile"], said["offload"]["overlap"]) == ("fp32", "none", "none")


@pytest.mark.parametrize("offload", [{"parameters": "nvme"}, {"optimizer": "nvme"}, {"path": "/nvme"}])
def test_a_fast_disk_needs_a_folder_and_a_folder_a_use(offload: dict[str, Any]):
    with pytest.raises(ValidationError, match="takes nvme and path together"):
        StrategyConfig.model_validate({"offload": offload})


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_zero_stage_can_be_said(stage: int):
    assert StrategyConfig.model_validate({"zero": stage}).zero == stage


@pytest.mark.parametrize(
    "values", [{"zero": 4}, {"zero": -1}, {"precision": "fp8"}, {"recompute": True}, {"stage": 1}, {"offload": "cpu"}]
)
def test_what_is_no_strategy_is_refused(values: dict[str, Any]):
    with pytest.raises(ValidationError, match=next(iter(values))):
        StrategyConfig.model_validate(values)


def test_a_strategy_is_said_in_a_few_words():
    offload = {"optimizer": "cpu", "parameters": "none"}
    values = {"zero": 3, "precision": "bf16", "tensor": 1, "pipeline": 1, "sequence": 2, "offload": offload}
    assert StrategyConfig.model_validate(values).describe() == "ZeRO 3, bf16, sequence 2, optimizer on cpu"
