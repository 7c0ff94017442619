"""The objective of a job: the only place that matches on a task's and an objective's name."""

from __future__ import annotations

from velocity.config.objective import CPOConfig, DPOConfig, KTOConfig, ORPOConfig, SimPOConfig
from velocity.config.training import TrainingJob
from velocity.objectives.answers import Reference, cached_reference
from velocity.objectives.causal_lm import CausalLM
from velocity.objectives.cpo import CPO
from velocity.objectives.dpo import DPO
from velocity.objectives.kto import KTO
from velocity.objectives.objective import Objective
from velocity.objectives.orpo import ORPO
from velocity.objectives.simpo import SimPO


def build_objective(job: TrainingJob, reference: Reference = cached_reference) -> Objective:
    """What the job's task is trained towards; `reference` is where an objective that has one finds it."""
    match job.preference:
        case None:
            return CausalLM()
        case DPOConfig():
            return DPO(job.preference, reference)
        case ORPOConfig():
            return ORPO(job.preference)
        case SimPOConfig():
            return SimPO(job.preference)
        case CPOConfig():
            return CPO(job.preference)
        case KTOConfig():
            return KTO(job.preference, reference)
