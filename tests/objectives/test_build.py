"""A task is trained towards the objective of its name."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from tests.running import make_job
from velocity.config.job import Job
from velocity.objectives.build import build_objective
from velocity.objectives.causal_lm import CausalLM


@pytest.mark.parametrize("task", ["pretrain", "sft"])
def test_pre_training_and_fine_tuning_predict_the_next_token(tmp_path: Path, task: str):
    assert isinstance(build_objective(make_job(tmp_path, {"task": task})), CausalLM)


@pytest.mark.parametrize("task", get_args(Job.model_fields["task"].annotation))
def test_every_task_that_a_job_may_name_has_an_objective(tmp_path: Path, task: str):
    assert build_objective(make_job(tmp_path, {"task": task})) is not None
