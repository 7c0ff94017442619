"""Where a job runs: the fields of each target."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from velocity.config.base import Config


class LocalConfig(Config):
    """This machine."""

    kind: Literal["local"] = "local"
    processes: PositiveInt | Literal["auto"] = Field("auto", description="one a GPU; one on a machine without")
    max_restarts: Annotated[int, Field(ge=0)] = Field(
        0, description="after a killed, a hanging or a lost rank go on from the last checkpoint, so many times at most"
    )
    hang_seconds: PositiveFloat = Field(
        1800.0, description="after so long without progress of any rank, the one that hangs is named and the job ends"
    )
