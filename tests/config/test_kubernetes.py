"""What a launch section of Kubernetes can say, and what of it a cluster would refuse."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tests.launch.kubernetes.jobs import GPUS
from velocity.config.kubernetes import KubernetesConfig


@pytest.mark.parametrize(
    ("launch", "named"),
    [
        ({"memory": "200GB"}, "memory"), ({"memory": "0"}, "memory"), ({"shared_memory": "lots"}, "shared_memory"),
        ({"namespace": "Team_A"}, "namespace"), ({"namespace": "a" * 64}, "namespace"), ({"claim": "a..b"}, "claim"),
        ({"service_account": "A"}, "service_account"), ({"secrets": ["my secret"]}, "secrets"),
        ({"node_selector": {"a b": "c"}}, "node_selector"), ({"node_selector": {"a": "-c"}}, "node_selector"),
        ({"tolerations": [{"operator": "Equal"}]}, "operator Equal needs a key"),
        ({"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}, "takes no value"),
        ({"efa": 1}, "huge pages"), ({"mount": "shared"}, "mount"), ({"mount": "/a/../b"}, "mount"),
        ({"mount": "/usr/share"}, "hides"), ({"environment": {"VELOCITY_JOB": "a"}}, "VELOCITY_JOB"),
        ({"environment": {"a-b": "c"}}, "a-b"), ({"gpus_per_node": -1}, "gpus_per_node"), ({"user": -1}, "user"),
    ],
)  # fmt: skip
def test_a_launch_section_that_a_cluster_would_refuse_is_refused_here(launch: dict[str, Any], named: str):
    with pytest.raises(ValidationError, match=named):
        KubernetesConfig.model_validate(launch)


def test_a_launch_section_with_everything_is_taken():
    KubernetesConfig.model_validate(GPUS)
