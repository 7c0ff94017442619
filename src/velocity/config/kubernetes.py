"""A launch section for a Kubernetes cluster, and how that writes names and quantities."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveFloat, PositiveInt, model_validator

from velocity.config.base import Config
from velocity.config.sections import one_to_list
from velocity.config.target import CloudConfig


def _written(pattern: str, what: str, example: str) -> AfterValidator:
    """The text matches the pattern whole; ValueError where it does not."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"not {what}; e.g. {example}")
        return text

    return AfterValidator(check)


_PART = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_LABEL = r"[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?"
_LABEL_KEY = rf"(?=.{{1,317}}$)({_PART}(\.{_PART})*/)?{_LABEL}"
NAMED = "a name of Kubernetes, of lower case letters, digits and hyphens"
Namespace = Annotated[str, _written(_PART, NAMED, "research")]
Named = Annotated[str, _written(rf"(?=.{{1,253}}$){_PART}(\.{_PART})*", NAMED, "team-files")]
Quantity = Annotated[str, _written(r"[1-9]\d*([KMGTP]i|[kMGTP])?", "a quantity of Kubernetes", "200Gi")]
LabelKey = Annotated[str, _written(_LABEL_KEY, "a label's key", "node.kubernetes.io/instance-type")]
LabelValue = Annotated[str, _written(rf"({_LABEL})?", "a label's value, which is a text", "p5.48xlarge")]
Folder = Annotated[str, _written(r"(/(?!\.\.?(/|$))[^/:]+)+", "an absolute path of a folder", "/shared")]


class Toleration(Config):
    """A taint that the job's pods put up with."""

    key: LabelKey | None = None
    operator: Literal["Equal", "Exists"] = "Equal"
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None

    @model_validator(mode="after")
    def _says_what_it_tolerates(self) -> Toleration:
        if self.operator == "Equal" and self.key is None:
            raise ValueError("operator Equal needs a key; e.g. {key: nvidia.com/gpu, operator: Exists}")
        if self.operator == "Exists" and self.value is not None:
            raise ValueError("operator Exists takes no value; leave value out, or use operator: Equal")
        return self


class KubernetesConfig(CloudConfig):
    """An Indexed Job of a Kubernetes cluster, from a machine that has its kubectl."""

    kind: Literal["kubernetes"] = "kubernetes"
    context: str | None = Field(None, description="of kubectl; its current one, if left out")
    namespace: Namespace = "default"
    gpus_per_node: Annotated[int, Field(ge=0)] = 0
    cpus_per_node: PositiveInt | None = None
    memory: Quantity | None = Field(None, description="of a node, as Kubernetes writes it, such as 200Gi")
    shared_memory: Quantity = Field("16Gi", description="of /dev/shm, through which ranks of a node talk")
    claim: Named | None = Field(None, description="a PersistentVolumeClaim with the job's files, that all nodes mount")
    mount: Folder = Field("/shared", description="where it is mounted; relative paths of the job start there")
    user: Annotated[int, Field(ge=0)] = Field(10001, description="the number of the user that the job runs as")
    service_account: Named | None = None
    secrets: Annotated[tuple[Named, ...], BeforeValidator(one_to_list, json_schema_input_type=str | list[str])] = Field(
        (), description="Kubernetes Secrets whose keys become variables"
    )
    node_selector: dict[LabelKey, LabelValue] = {}
    tolerations: tuple[Toleration, ...] = ()
    efa: Annotated[int, Field(ge=0)] = Field(0, description="network interfaces of AWS's kind, a node")
    max_hours: PositiveFloat | None = Field(None, description="the job is ended after so long; it saves before")

    @model_validator(mode="after")
    def _leaves_our_variables(self) -> KubernetesConfig:
        if ours := [
            name for name in self.environment if name.startswith("VELOCITY_") or name == "JOB_COMPLETION_INDEX"
        ]:
            raise ValueError(f"environment: {ours[0]} is set by Velocity; take it out")
        return self

    @model_validator(mode="after")
    def _huge_pages_come_with_memory(self) -> KubernetesConfig:
        if self.efa and not (self.memory or self.cpus_per_node):
            raise ValueError("efa takes huge pages, which Kubernetes gives with memory alone; add memory: 200Gi")
        return self

    @model_validator(mode="after")
    def _mount_is_free(self) -> KubernetesConfig:
        first = self.mount.split("/")[1]
        if first in ("bin", "dev", "etc", "job", "lib", "opt", "proc", "sys", "tmp", "usr"):
            raise ValueError(f"mount: {self.mount} hides what the container needs there; e.g. /shared")
        return self
