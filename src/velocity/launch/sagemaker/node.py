"""What a container on SageMaker does beside its work: it fetches secrets first, and leaves a text at its end."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path

from velocity.errors import VelocityError
from velocity.launch.sagemaker.failure import failure_text
from velocity.launch.sagemaker.secrets import fetch_secrets
from velocity.secrets import scrub

FAILURE = Path("/opt/ml/output/failure")


def begin(environment: MutableMapping[str, str] = os.environ) -> None:
    """The job's secrets stand in the environment; UserError where one is not to be had. It comes before all else."""
    environment.update(fetch_secrets(environment))


def leave(error: VelocityError, file: Path = FAILURE) -> None:
    """SageMaker finds why the job ended: the text begins with the exit status, which it does not keep itself."""
    with suppress(OSError):  # the disk may be full, which is what the error says
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(scrub(failure_text(error.exit_status, str(error))), encoding="utf-8")
