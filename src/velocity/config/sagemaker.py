"""A launch section for training jobs of AWS SageMaker."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from velocity.config.target import VARIABLE, CloudConfig, Names

SECRET_ARN = re.compile(r"arn:aws[a-z-]*:secretsmanager:[a-z0-9-]+:\d{12}:secret:[\w/+=.@-]+")


class SageMakerConfig(CloudConfig):
    """Training jobs of AWS SageMaker: they run any task, without an endpoint."""

    kind: Literal["sagemaker"] = "sagemaker"
    instance: Annotated[str, Field(pattern=r"^ml\.[a-z0-9-]+\.[a-z0-9-]+$")] = Field(
        description="such as ml.p5.48xlarge"
    )
    role: str | None = Field(None, description="the role that the job takes on: its ARN, or its name")
    region: str | None = Field(None, description="left out: as AWS's own tools find it")
    bucket: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")] | None = Field(
        None, description="for inputs and results; the account's default one, if left out"
    )
    prefix: Annotated[str, Field(pattern=r"^[\w.-]+(/[\w.-]+)*$")] = Field(
        "velocity", description="under which all of it lies in the bucket"
    )
    volume_gib: PositiveInt = Field(200, description="a node's disk; instances with NVMe have their own")
    max_hours: Annotated[float, Field(gt=0, le=672)] = Field(
        24.0, description="the job is stopped after so long; it saves before"
    )
    spot: bool = Field(False, description="spare capacity: cheaper, and interrupted; it goes on by itself")
    max_wait_hours: PositiveFloat | None = Field(None, description="spot: with the time that it waits; 3 x max_hours")
    warm_pool_minutes: Annotated[int, Field(ge=1, le=360)] | None = Field(
        None, description="keep the machines so long for the next job"
    )
    subnets: Names = Field((), description="of your own network; they need a way to S3")
    security_groups: Names = Field((), description="with subnets; several nodes must reach each other by them")
    kms_key: str | None = Field(None, description="that encrypts disks and results")
    isolated: bool = Field(False, description="no network but S3's channels; for one node")
    secrets: dict[str, str] = Field({}, description="variable: ARN of a secret of the Secrets Manager")
    tags: dict[str, str] = {}

    @property
    def wait_hours(self) -> float:
        """How long a spot job may take with the time that it waits."""
        return 3 * self.max_hours if self.max_wait_hours is None else self.max_wait_hours

    @model_validator(mode="after")
    def _spot_waits(self) -> SageMakerConfig:
        if self.max_wait_hours is not None and not self.spot:
            raise ValueError("max_wait_hours is of spot capacity; set launch.spot, or leave it out")
        if self.spot and self.wait_hours < self.max_hours:
            what = f"max_wait_hours={self.max_wait_hours:g} is less than max_hours={self.max_hours:g}"
            raise ValueError(f"{what}; it counts waiting and running together")
        if self.spot and self.warm_pool_minutes is not None:
            raise ValueError("warm_pool_minutes does not go with spot; leave one of them out")
        return self

    @model_validator(mode="after")
    def _network_is_whole(self) -> SageMakerConfig:
        if bool(self.subnets) != bool(self.security_groups):
            given, lacks = ("subnets", "security_groups") if self.subnets else ("security_groups", "subnets")
            raise ValueError(f"{given} go with {lacks}; give both, or neither")
        if self.isolated and self.nodes > 1:
            what = "isolated goes with nodes: 1: nodes exchange their checkpoints through S3"
            raise ValueError(f"{what}; use subnets without a way to the internet")
        if self.isolated and self.secrets:
            raise ValueError("isolated does not go with secrets: the Secrets Manager is not reached; leave one")
        return self

    @model_validator(mode="after")
    def _secrets_are_named_by_arn(self) -> SageMakerConfig:
        for name, arn in self.secrets.items():
            if not VARIABLE.fullmatch(name):
                raise ValueError(f"secrets: {name!r} is no name of a variable; e.g. HF_TOKEN")
            if not SECRET_ARN.fullmatch(arn):
                # the value is not shown: it may be the secret itself
                raise ValueError(f"secrets: {name} is no ARN of a secret; arn:aws:secretsmanager:REGION:…")
            if name in self.environment:
                raise ValueError(f"secrets: {name} stands in launch.environment, too; leave one of them out")
        return self
