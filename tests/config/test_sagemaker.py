"""What a launch section of SageMaker can say, and what of it contradicts itself."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tests.launch.sagemaker.jobs import SECRET
from velocity.config.sagemaker import SageMakerConfig


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"instance": None}, "instance"),
        ({"instance": "p5.48xlarge"}, "instance"),
        ({"max_wait_hours": 3}, "max_wait_hours is of spot"),
        ({"spot": True, "max_hours": 4, "max_wait_hours": 3}, "is less than max_hours=4"),
        ({"spot": True, "warm_pool_minutes": 5}, "warm_pool_minutes does not go with spot"),
        ({"subnets": "subnet-1"}, "subnets go with security_groups"),
        ({"security_groups": "sg-1"}, "security_groups go with subnets"),
        ({"isolated": True, "nodes": 2}, "isolated goes with nodes: 1"),
        ({"isolated": True, "secrets": {"HF_TOKEN": SECRET}}, "isolated does not go with secrets"),
        ({"secrets": {"HF_TOKEN": "my-secret"}}, "HF_TOKEN is no ARN"),
        ({"secrets": {"HF-TOKEN": SECRET}}, "'HF-TOKEN' is no name of a variable"),
        ({"secrets": {"HF_TOKEN": SECRET}, "environment": {"HF_TOKEN": "x"}}, "stands in launch.environment, too"),
        ({"environment": {"1X": "a"}}, "'1X' is no name of a variable"),
        ({"max_hours": 700}, "max_hours"),
        ({"bucket": "Not_A_Bucket"}, "bucket"),
        ({"prefix": "/velocity"}, "prefix"),
    ],
)
def test_a_launch_section_that_contradicts_itself_is_refused(values: dict[str, Any], said: str):
    with pytest.raises(ValidationError, match=said):
        SageMakerConfig.model_validate({"kind": "sagemaker", "instance": "ml.c5.xlarge", **values})


def test_a_secret_in_place_of_its_arn_is_not_told():
    planted = "hf_" + "abcdefghij" * 4
    with pytest.raises(ValidationError) as error:
        SageMakerConfig(instance="ml.c5.xlarge", secrets={"HF_TOKEN": planted})
    assert planted not in str(error.value.errors()[0]["msg"])
