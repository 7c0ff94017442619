"""Where a job runs: the fields of each target."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)

from velocity.config import slurm
from velocity.config.base import Config
from velocity.config.sections import one_to_list

Names = Annotated[tuple[str, ...], BeforeValidator(one_to_list, json_schema_input_type=str | list[str])]
Port = Annotated[int, Field(ge=1024, le=65535)]
VARIABLE = re.compile(r"[A-Za-z_]\w*")
SECRET_ARN = re.compile(r"arn:aws[a-z-]*:secretsmanager:[a-z0-9-]+:\d{12}:secret:[\w/+=.@-]+")


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


class LocalConfig(LaunchConfig):
    """This machine."""

    kind: Literal["local"] = "local"


class NodesConfig(LaunchConfig):
    """A target that is asked for a number of machines."""

    nodes: PositiveInt = Field(1, description="machines")

    @property
    def node_count(self) -> int:
        """On how many machines the job runs."""
        return self.nodes


class SshConfig(LaunchConfig):
    """Hosts that ssh reaches, with the same Python and the same folder on each."""

    kind: Literal["ssh"] = "ssh"
    hosts: Names = Field((), description="their names; ranks are counted in this order")
    hostfile: str | None = Field(None, description="or a file with a host a line, as DeepSpeed's and MPI's")
    config: str | None = Field(None, description="a configuration file for ssh, as its -F")
    folder: str | None = Field(None, description="where the job runs on each host, seen from home; here, if left out")
    python: str | None = Field(None, description="the Python on each host that has Velocity; ours, if left out")
    port: Port = Field(29400, description="of the first host, where the others come to")

    @property
    def names(self) -> tuple[str, ...]:
        """The hosts, by name, of the file or of the list."""
        if self.hostfile is None:
            return self.hosts
        lines = Path(self.hostfile).expanduser().read_text(encoding="utf-8").splitlines()
        words = (line.partition("#")[0].split() for line in lines)
        return tuple(first for first, *_ in filter(None, words))

    @property
    def node_count(self) -> int:
        """On how many machines the job runs."""
        return len(self.names)

    @model_validator(mode="after")
    def _names_hosts(self) -> SshConfig:
        if bool(self.hosts) == (self.hostfile is not None):
            raise ValueError("kind ssh needs either hosts or hostfile; e.g. hosts: [gpu-1, gpu-2]")
        try:
            names = self.names
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"hostfile cannot be read: {error}; give a file with a host a line") from None
        if not names:
            raise ValueError("hostfile names no host; give a file with a host a line")
        addresses = [name.rpartition("@")[2] for name in names]
        if twice := sorted({name for name in addresses if addresses.count(name) > 1}):
            raise ValueError(f"the host {twice[0]} is named twice; ranks of one host share one node")
        if wrong := [name for name in names if not re.fullmatch(r"[\w@.:\[\]-]+", name) or name.startswith("-")]:
            raise ValueError(f"{wrong[0]!r} is no name of a host; e.g. gpu-1, or user@gpu-1")
        return self


class SlurmConfig(NodesConfig):
    """A Slurm cluster, from a machine that has its sbatch."""

    kind: Literal["slurm"] = "slurm"
    partition: slurm.Line | None = Field(None, description="the cluster's default one, if left out")
    account: slurm.Line | None = Field(None, description="that pays for it")
    qos: slurm.Line | None = Field(None, description="the quality of service, where the cluster has some")
    time: slurm.Time | None = Field(
        None, description="the limit, such as 12h, or as Slurm writes it: '12:00:00', in quotes"
    )
    gpus_per_node: PositiveInt | None = Field(None, description="left out: none are reserved")
    cpus_per_node: PositiveInt | None = Field(None, description="left out: what the cluster gives, often a single one")
    memory: slurm.Line | None = Field(None, description="of a node, as Slurm writes it, such as 200G")
    constraint: slurm.Line | None = Field(None, description="features that nodes must have, such as h100&ib")
    options: slurm.Options = Field((), description="further options of sbatch, such as --exclude=node-7")
    setup: str | None = Field(None, description="shell lines before the job, such as module load cuda")
    python: slurm.Line | None = Field(
        None, description="the Python that has Velocity, on every node; ours, if left out"
    )
    warning_seconds: Annotated[int, Field(gt=0, le=65535)] = Field(
        300, description="so long before the limit the job saves"
    )
    requeue: bool = Field(True, description="then it goes back into the queue, and goes on from there")

    @model_validator(mode="after")
    def _has_time_to_work(self) -> SlurmConfig:
        limit = None if self.time is None else slurm.seconds(self.time)
        if limit is not None and self.warning_seconds >= limit:
            what = f"warning_seconds={self.warning_seconds} leaves nothing of time={self.time} to work in"
            raise ValueError(f"{what}; a longer time, or a shorter warning")
        return self


class CloudConfig(NodesConfig):
    """A target that runs our container."""

    image: str | None = Field(None, description="of velocity image push; with its digest, if that was left out")
    environment: dict[str, str] = Field({}, description="variables for the job; a secret is none")

    @model_validator(mode="after")
    def _names_variables(self) -> CloudConfig:
        if wrong := [name for name in self.environment if not VARIABLE.fullmatch(name)]:
            raise ValueError(f"environment: {wrong[0]!r} is no name of a variable; e.g. NCCL_DEBUG")
        return self


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
