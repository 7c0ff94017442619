"""What launch sections of several targets have in common. It knows no target."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, model_validator

from velocity.config.base import Config
from velocity.config.sections import one_to_list

Names = Annotated[tuple[str, ...], BeforeValidator(one_to_list, json_schema_input_type=str | list[str])]
VARIABLE = re.compile(r"[A-Za-z_]\w*")


class LaunchConfig(Config):
    """What every target has."""

    processes: PositiveInt | Literal["auto"] = Field(
        "auto", description="of all nodes together: one a GPU, and one a node on machines without"
    )
    max_restarts: Annotated[int, Field(ge=0)] = Field(
        0, description="after a killed, a hanging or a lost rank go on from the last checkpoint, so many times at most"
    )
    hang_seconds: PositiveFloat = Field(
        1800.0, description="after so long without progress of any rank, the one that hangs is named and the job ends"
    )

    @property
    def node_count(self) -> int:
        """On how many machines the job runs."""
        return 1


class NodesConfig(LaunchConfig):
    """A target that is asked for a number of machines."""

    nodes: PositiveInt = Field(1, description="machines")

    @property
    def node_count(self) -> int:
        """On how many machines the job runs."""
        return self.nodes


class CloudConfig(NodesConfig):
    """A target that runs our container."""

    image: str | None = Field(None, description="of velocity image push; with its digest, if that was left out")
    environment: dict[str, str] = Field({}, description="variables for the job; a secret is none")

    @model_validator(mode="after")
    def _names_variables(self) -> CloudConfig:
        if wrong := [name for name in self.environment if not VARIABLE.fullmatch(name)]:
            raise ValueError(f"environment: {wrong[0]!r} is no name of a variable; e.g. NCCL_DEBUG")
        return self
