"""Where a job runs: the fields of each target."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from velocity.config.base import Config


class LocalConfig(Config):
    """This machine."""

    kind: Literal["local"] = "local"
    processes: PositiveInt | Literal["auto"] = Field("auto", description="one a GPU; one on a machine without")
