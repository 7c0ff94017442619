"""The objective of a job: the only place that matches on a task's name."""

from __future__ import annotations

from velocity.config.job import Job
from velocity.objectives.causal_lm import CausalLM
from velocity.objectives.objective import Objective


def build_objective(job: Job) -> Objective:
    """What the job's task is trained towards."""
    match job.task:
        case "pretrain" | "sft":
            return CausalLM()
