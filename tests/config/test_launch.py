"""Where a job runs."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from velocity.config.launch import LocalConfig


def test_a_job_runs_here_with_as_many_processes_as_the_planner_says():
    once = {"max_restarts": 0, "hang_seconds": 1800}
    assert LocalConfig().model_dump() == {"kind": "local", "processes": "auto", **once}


@pytest.mark.parametrize(
    "values",
    [
        {"processes": 0},
        {"processes": "many"},
        {"kind": "cloud"},
        {"nodes": 2},
        {"max_restarts": -1},
        {"hang_seconds": 0},
    ],
)
def test_what_is_no_target_is_refused(values: dict[str, Any]):
    with pytest.raises(ValidationError, match=next(iter(values))):
        LocalConfig.model_validate(values)
