"""Where a job runs: the launch section, one class a target, told apart by its kind."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag

from velocity.config.kubernetes import KubernetesConfig
from velocity.config.sagemaker import SageMakerConfig
from velocity.config.slurm import SlurmConfig
from velocity.config.ssh import SshConfig
from velocity.config.target import LaunchConfig


class LocalConfig(LaunchConfig):
    """This machine."""

    kind: Literal["local"] = "local"


def _kind(value: Any) -> Any:
    return value.get("kind", "local") if isinstance(value, dict) else getattr(value, "kind", None)


AnyLaunch = LocalConfig | SshConfig | SlurmConfig | SageMakerConfig | KubernetesConfig
Launch = Annotated[
    Annotated[LocalConfig, Tag("local")]
    | Annotated[SshConfig, Tag("ssh")]
    | Annotated[SlurmConfig, Tag("slurm")]
    | Annotated[SageMakerConfig, Tag("sagemaker")]
    | Annotated[KubernetesConfig, Tag("kubernetes")],
    Discriminator(
        _kind,
        custom_error_type="kind",
        custom_error_message="unknown target; kind: local, ssh, slurm, sagemaker or kubernetes",
    ),
]
TARGETS = ("local", "ssh", "slurm", "sagemaker", "kubernetes")
COMMON = frozenset(LaunchConfig.model_fields)
