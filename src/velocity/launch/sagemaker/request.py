"""The CreateTrainingJob request of a submission. Pure: whoever submits fills the blanks in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from velocity.config.sagemaker import SageMakerConfig
from velocity.launch.launcher import Submission
from velocity.launch.sagemaker import metrics
from velocity.launch.sagemaker.inputs import Channel, Plan, checkpoints_of
from velocity.launch.sagemaker.instances import has_nvme
from velocity.launch.sagemaker.names import CHANNELS, CHECKPOINTS, JOB_CHANNEL, SCRATCH, Names
from velocity.launch.sagemaker.secrets import variables_of

HOUR_SECONDS = 3600
ATTEMPTS = 3  # after errors of SageMaker's own; the run goes on from its mirror

# The loopback and docker's bridge lead to no other node; what EFA needs beside it, its plugin finds out by itself.
SOCKETS = "^docker0,lo"


def request_of(submission: Submission, plan: Plan, names: Names) -> dict[str, Any]:
    """The request, as boto3 takes it."""
    launch: SageMakerConfig = submission.launch
    request: dict[str, Any] = {
        "TrainingJobName": submission.name,
        "AlgorithmSpecification": {
            "TrainingImage": names.image,
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["python", "-m", "velocity", "node", "sagemaker"],
            "ContainerArguments": [f"{CHANNELS}/{JOB_CHANNEL}/{name}" for name in submission.files],
            "MetricDefinitions": metrics.definitions(submission.jobs),
        },
        "RoleArn": names.role,
        "InputDataConfig": _channels(submission, plan, names),
        "OutputDataConfig": {"S3OutputPath": names.jobs(launch.prefix), "CompressionType": "NONE"},
        "ResourceConfig": _resources(launch),
        "StoppingCondition": {"MaxRuntimeInSeconds": math.ceil(launch.max_hours * HOUR_SECONDS)},
        "RetryStrategy": {"MaximumRetryAttempts": ATTEMPTS},
        "Environment": _environment(launch),
        "EnableNetworkIsolation": launch.isolated,
        "EnableManagedSpotTraining": launch.spot,
        "Tags": [{"Key": key, "Value": value} for key, value in {"velocity": submission.name, **launch.tags}.items()],
    }
    if launch.spot:
        request["StoppingCondition"]["MaxWaitTimeInSeconds"] = math.ceil(launch.wait_hours * HOUR_SECONDS)
    if launch.subnets:
        request["VpcConfig"] = {"Subnets": [*launch.subnets], "SecurityGroupIds": [*launch.security_groups]}
    if launch.kms_key:
        request["OutputDataConfig"]["KmsKeyId"] = launch.kms_key
    if launch.isolated:
        request["CheckpointConfig"] = {"S3Uri": checkpoints_of(submission.jobs, names), "LocalPath": CHECKPOINTS}
    return request


def _channels(submission: Submission, plan: Plan, names: Names) -> list[dict[str, Any]]:
    prefix = submission.launch.prefix
    ours = Channel(JOB_CHANNEL, "File", "", url=f"{names.jobs(prefix)}/{submission.name}/{JOB_CHANNEL}/")
    uploaded = {one.name: f"{names.input(prefix, one.name)}/" for one in plan.channels if not one.url}
    return [_channel(one, one.url or uploaded[one.name]) for one in (ours, *plan.channels)]


def _channel(channel: Channel, url: str) -> dict[str, Any]:
    return {
        "ChannelName": channel.name,
        "InputMode": channel.mode,
        "CompressionType": "None",
        "DataSource": {
            "S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": url, "S3DataDistributionType": "FullyReplicated"}
        },
    }


def _resources(launch: SageMakerConfig) -> dict[str, Any]:
    resources: dict[str, Any] = {"InstanceType": launch.instance, "InstanceCount": launch.nodes}
    if not has_nvme(launch.instance):
        resources["VolumeSizeInGB"] = launch.volume_gib
        if launch.kms_key:
            resources["VolumeKmsKeyId"] = launch.kms_key
    if launch.warm_pool_minutes is not None:
        resources["KeepAlivePeriodInSeconds"] = 60 * launch.warm_pool_minutes
    return resources


def _environment(launch: SageMakerConfig) -> Mapping[str, str]:
    ours = {"HF_HOME": f"{SCRATCH}/hub"}  # a home folder lies on a small disk
    if launch.nodes > 1:
        ours["NCCL_SOCKET_IFNAME"] = SOCKETS
    if launch.isolated:
        ours["HF_HUB_OFFLINE"] = "1"
    return {**ours, **launch.environment, **variables_of(launch.secrets)}
