"""A task is trained towards the objective of its name."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch

from tests.objectives.toys import pairs
from tests.running import make_job
from velocity.config.objective import KINDS
from velocity.config.training import TrainingJob
from velocity.objectives.answers import cached_reference
from velocity.objectives.build import build_objective
from velocity.objectives.causal_lm import CausalLM
from velocity.objectives.cpo import CPO
from velocity.objectives.dpo import DPO
from velocity.objectives.kto import KTO
from velocity.objectives.orpo import ORPO
from velocity.objectives.simpo import SimPO

OBJECTIVES = {"dpo": DPO, "orpo": ORPO, "simpo": SimPO, "cpo": CPO, "kto": KTO}


def preference_job(folder: Path, **preference) -> TrainingJob:
    return make_job(folder, {"task": "preference", "preference": preference})


@pytest.mark.parametrize("task", ["pretrain", "sft"])
def test_pre_training_and_fine_tuning_predict_the_next_token(tmp_path: Path, task: str):
    assert isinstance(build_objective(make_job(tmp_path, {"task": task})), CausalLM)


@pytest.mark.parametrize("task", get_args(TrainingJob.model_fields["task"].annotation))
def test_every_task_that_a_job_may_name_has_an_objective(tmp_path: Path, task: str):
    assert build_objective(make_job(tmp_path, {"task": task})) is not None


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_preference_has_the_objective_of_its_name(tmp_path: Path, kind: str):
    assert type(build_objective(preference_job(tmp_path, kind=kind))) is OBJECTIVES[kind]


def test_a_preference_job_that_names_no_objective_is_trained_with_dpo(tmp_path: Path):
    assert isinstance(build_objective(make_job(tmp_path, {"task": "preference"})), DPO)


def test_the_settings_of_the_job_are_those_of_its_objective(tmp_path: Path):
    dpo = build_objective(preference_job(tmp_path, kind="dpo", beta=0.3, loss="ipo", sft_weight=0.2))
    assert isinstance(dpo, DPO)
    assert (dpo.config.beta, dpo.config.loss, dpo.sft.weight) == (0.3, "ipo", 0.2)
    simpo = build_objective(preference_job(tmp_path, kind="simpo", beta=2.5, gamma=1.4))
    assert isinstance(simpo, SimPO) and (simpo.beta, simpo.gamma) == (2.5, 1.4)
    cpo = build_objective(preference_job(tmp_path, kind="cpo", beta=0.2, sft_weight=0.5))
    assert isinstance(cpo, CPO) and (cpo.beta, cpo.sft.weight) == (0.2, 0.5)
    orpo = build_objective(preference_job(tmp_path, kind="orpo", beta=0.4))
    assert isinstance(orpo, ORPO) and (orpo.beta, orpo.sft.weight) == (0.4, 1.0)
    kto = build_objective(preference_job(tmp_path, kind="kto", desirable_weight=1.2))
    assert isinstance(kto, KTO) and kto.config.desirable_weight == 1.2


@pytest.mark.parametrize("kind", ["dpo", "kto"])
def test_the_reference_is_the_cached_one_unless_another_is_given(tmp_path: Path, kind: str):
    job = preference_job(tmp_path, kind=kind)
    default, given = build_objective(job), build_objective(job, lambda batch: torch.ones(2))
    assert isinstance(default, DPO | KTO) and isinstance(given, DPO | KTO)
    assert default.reference is cached_reference
    assert given.reference(pairs(([0], [1]))).tolist() == [1, 1]
