"""Requests that SageMaker would refuse are refused before: each by one clear error that names the job's key."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from tests.launch.sagemaker.jobs import CASES, HOME, LAUNCH, SFT, look, submission
from velocity.errors import UserError
from velocity.launch.sagemaker.inputs import plan_inputs
from velocity.launch.sagemaker.launcher import REQUEST, STAND_IN, SageMakerLauncher, _filled
from velocity.launch.sagemaker.request import request_of
from velocity.launch.sagemaker.validate import KEYS, check_request, instance_types


def filled(name: str) -> dict[str, Any]:
    """A case's request without a blank."""
    made = submission(HOME, *CASES[name])
    plan = plan_inputs(made.jobs, look)
    return request_of(made, plan, _filled(made, plan, STAND_IN))


def changed(path: str, value: Any, name: str = "two-nodes") -> dict[str, Any]:
    """The request with one value in another's place; None takes it out."""
    request = copy.deepcopy(filled(name))
    *above, last = path.split(".")
    node: Any = request
    for part in above:
        node = node[int(part) if part.isdigit() else part]
    if value is None:
        del node[last]
    else:
        node[int(last) if last.isdigit() else last] = value
    return request


@pytest.mark.parametrize("name", CASES)
def test_what_we_render_is_valid(name: str):
    check_request(filled(name))


def test_a_blank_is_not_sent():
    with pytest.raises(UserError, match="lacks <launch.role>"):
        check_request(json.loads(SageMakerLauncher(at=look).render(submission(HOME, *CASES["blank"]))[REQUEST]))


LONG = "x" * 513
CHANNEL = filled("two-nodes")["InputDataConfig"][1]
WRONG: list[tuple[str, Any, str, str]] = [
    (
        "ResourceConfig.InstanceType",
        "ml.p5.49xlarge",
        "launch.instance",
        "ml.p5.49xlarge is nothing that SageMaker has",
    ),
    ("ResourceConfig.InstanceCount", 0, "launch.nodes", "no machine is asked for"),
    ("ResourceConfig.InstanceCount", "two", "launch.nodes", "is no integer"),
    ("ResourceConfig.InstanceCount", True, "launch.nodes", "is no integer"),
    ("ResourceConfig.KeepAlivePeriodInSeconds", 21601, "launch.warm_pool_minutes", "more than 21600"),
    ("ResourceConfig.VolumeSizeInGB", 100, "launch.volume_gib", "takes no VolumeSizeInGB"),
    ("ResourceConfig.VolumeKmsKeyId", "key", "launch.kms_key", "takes no VolumeKmsKeyId"),
    ("ResourceConfig.InstanceTypes", 1, "the request's ResourceConfig.InstanceTypes", "nothing that SageMaker knows"),
    ("RoleArn", "arn:aws:iam::12:role/x", "launch.role", "is not of the form"),
    ("RoleArn", None, "launch.role", "RoleArn is missing"),
    ("TrainingJobName", "a_b", "output", "is not of the form"),
    ("TrainingJobName", "a" * 64, "output", "more than 63"),
    ("AlgorithmSpecification.TrainingInputMode", "Fast", "the request's", "nothing that SageMaker has"),
    ("AlgorithmSpecification.AlgorithmName", "mine", "launch.image", "either an image or"),
    ("AlgorithmSpecification.ContainerArguments", ["x"] * 101, "job files", "more than 100"),
    ("AlgorithmSpecification.ContainerArguments.0", "x" * 257, "job files", "more than 256"),
    ("AlgorithmSpecification.MetricDefinitions.0.Name", "", "data.eval", "fewer than 1"),
    ("StoppingCondition.MaxRuntimeInSeconds", 2419201, "launch.max_hours", "28 days"),
    ("StoppingCondition.MaxWaitTimeInSeconds", 90000, "launch.max_wait_hours", "spot capacity alone"),
    ("Environment.LONG", LONG, "launch.environment", "more than 512"),
    ("Environment.1X", "a", "launch.environment", "is not of the form"),
    ("Environment", {f"V{number}": "" for number in range(101)}, "launch.environment", "more than 100"),
    ("InputDataConfig", [CHANNEL] * 21, "data", "more than 20"),
    ("InputDataConfig.0", CHANNEL, "data", "two channels are named"),
    ("InputDataConfig.1.ChannelName", "a b", "data", "is not of the form"),
    ("InputDataConfig.2.CompressionType", "Gzip", "data", "plain files"),
    ("OutputDataConfig.CompressionType", "None", "the request's", "one of GZIP, NONE"),
    ("OutputDataConfig.S3OutputPath", "bucket", "launch.bucket", "is not of the form"),
    ("OutputDataConfig.KmsKeyId", "a key", "launch.kms_key", "is not of the form"),
    ("EnableNetworkIsolation", True, "launch.isolated", "cannot exchange checkpoints"),
    ("EnableNetworkIsolation", "yes", "launch.isolated", "is no boolean"),
    ("EnableManagedSpotTraining", True, "launch.max_wait_hours", "at least MaxRuntimeInSeconds=86400"),
    ("RetryStrategy.MaximumRetryAttempts", 31, "the request's", "more than 30"),
    ("VpcConfig", {"Subnets": ["subnet-1"]}, "launch.security_groups", "SecurityGroupIds is missing"),
    ("VpcConfig", {"Subnets": ["a_b"], "SecurityGroupIds": ["sg-1"]}, "launch.subnets", "is not of the form"),
    ("Tags", [{"Key": "AWS:x", "Value": ""}], "launch.tags", "Amazon's own"),
    ("Tags", [{"Key": "x", "Value": ""}] * 2, "launch.tags", "stands twice"),
    ("Tags", [{"Key": "x" * 129, "Value": ""}], "launch.tags", "more than 128"),
    ("HyperParameters", {f"k{number}": "" for number in range(101)}, "the request's", "more than 100"),
]


@pytest.mark.parametrize(("path", "value", "where", "said"), WRONG)
def test_what_sagemaker_would_refuse_is_refused(path: str, value: Any, where: str, said: str):
    with pytest.raises(UserError) as error:
        check_request(changed(path, value))
    problem = error.value.problems[0]
    assert said in f"{problem.what} {problem.fix}"
    assert problem.where.startswith(where)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("ResourceConfig.KeepAlivePeriodInSeconds", 600, "does not go with spot"),
        ("StoppingCondition.MaxWaitTimeInSeconds", 28799, "at least MaxRuntimeInSeconds=28800"),
        ("StoppingCondition.MaxWaitTimeInSeconds", None, "it is None"),
    ],
)
def test_spot_capacity_has_rules_of_its_own(path: str, value: Any, said: str):
    with pytest.raises(UserError, match=said):
        check_request(changed(path, value, "chain-on-spot"))


def test_a_machine_without_a_disk_needs_one():
    with pytest.raises(UserError, match=r"ml\.m5\.4xlarge has no disk of its own"):
        check_request(changed("ResourceConfig.VolumeSizeInGB", None, "isolated"))


def test_all_that_is_wrong_is_told_at_once():
    request = changed("ResourceConfig.InstanceType", "ml.x.y")
    request["RoleArn"], request["Spot"] = "me", True
    with pytest.raises(UserError) as error:
        check_request(request)
    assert {problem.where for problem in error.value.problems} == {
        "launch.instance",
        "launch.role",
        "the request's Spot",
    }


def test_a_type_that_is_misspelt_is_told_the_nearest():
    with pytest.raises(UserError) as error:
        check_request(changed("ResourceConfig.InstanceType", "ml.p5.48xlargee"))
    assert "ml.p5.48xlarge" in error.value.problems[0].fix


def test_every_key_of_the_launch_section_that_errors_name_is_one():
    known = type(submission(HOME, [SFT], LAUNCH).launch).model_fields
    assert {key.removeprefix("launch.") for key in KEYS.values() if key.startswith("launch.")} <= set(known)


def test_the_types_of_machines_that_are_promised_are_known():
    assert {"ml.p5.48xlarge", "ml.p5en.48xlarge", "ml.p6-b200.48xlarge", "ml.g6e.48xlarge"} <= set(instance_types())
