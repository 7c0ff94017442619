"""How many optimizer steps a job takes."""

from __future__ import annotations

import math

from velocity.config.training import TrainingJob
from velocity.data.loader import TrainLoader


def total_steps(job: TrainingJob, loader: TrainLoader) -> int:
    """Optimizer steps of the whole run, from the job's epochs, steps or tokens."""
    if job.duration.steps is not None:
        return job.duration.steps
    if job.duration.tokens is not None:
        return math.ceil(job.duration.tokens / (job.batch.tokens or loader.rows * job.data.sequence_length))
    assert job.duration.epochs is not None, "one of the three is given"
    return loader.steps(job.duration.epochs)
