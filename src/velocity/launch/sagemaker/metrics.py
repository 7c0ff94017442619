"""What SageMaker reads out of a job's lines and shows as curves. It knows the lines, not who prints them.

What is printed with a separator of thousands is left out: CloudWatch reads no number there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from velocity.config.inference import InferenceJob
from velocity.config.job import Job
from velocity.config.training import TrainingJob

NUMBER = r"([-+]?[0-9.]+(?:e[-+]?[0-9]+)?)"
EVALUATED = ("perplexity", "reward accuracy", "preference accuracy", "reward margin")
MOST = 40


def definitions(jobs: Sequence[Job]) -> list[dict[str, str]]:
    """Names and patterns, as many as a request takes."""
    found = {name: pattern for job in jobs for name, pattern in _of(job)}
    return [{"Name": name, "Regex": pattern} for name, pattern in found.items()][:MOST]


def _of(job: Job) -> Iterator[tuple[str, str]]:
    if isinstance(job, InferenceJob):
        yield f"{job.task}:rows_per_second", rf"row [0-9,]+/[0-9,]+  {NUMBER} rows/s"
        return
    yield "train:loss", rf"step [0-9]+/[0-9]+  loss {NUMBER}"
    if isinstance(job, TrainingJob):
        words = EVALUATED[1:] if job.task == "preference" else EVALUATED[:1]
        for name in job.data.eval:
            for measure in words:
                pattern = rf"step [0-9]+  (?:.*  )?{re.escape(name)}: (?:[^:]*, )?{measure} {NUMBER}"
                yield f"eval:{name}:{measure.replace(' ', '_')}", pattern
