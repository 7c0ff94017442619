"""What Kubernetes is told of a job: its files, a name for its pods, and an Indexed Job. Pure: it asks no cluster.

Of the nodes, each is a pod of the Job, by the name JOB-INDEX.SERVICE. A pod that is gone, or that saved and says so
with 75, comes again by itself and goes on; after 2, wrong input, none does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import yaml

from velocity.config.kubernetes import KubernetesConfig
from velocity.errors import InterruptedRun, UserError
from velocity.launch.launcher import Submission

FILE = "kubernetes.yaml"
CONTAINER = "velocity"
INSTANCE = "app.kubernetes.io/instance"
JOB_FOLDER = "/job"  # where pods see the job files
HOME = "/home/velocity"  # on the node's disk: caches, and without a claim the run folder
VERDICT = "/dev/termination-log"  # becomes the pod's termination message
GPU, EFA = "nvidia.com/gpu", "vpc.amazonaws.com/efa"
HUGE_PAGES = "5120Mi"  # what libfabric's provider for EFA asks for at most
SAVE_SECONDS = 600  # as long as a cluster's autoscaler waits at most, too
KEEP_SECONDS = 7 * 24 * 3600  # so long the cluster remembers how a job ended
HOUR_SECONDS = 3600
NO_IMAGE = "<launch.image>"


def manifest(submission: Submission, image: str) -> str:
    """All that is applied, as YAML."""
    made = (_files(submission), _service(submission), _job(submission, image))
    return "---\n".join(yaml.dump(one, Dumper=_Dumper, sort_keys=False, width=1000) for one in made)


def _metadata(submission: Submission) -> dict[str, Any]:
    labels = {"app.kubernetes.io/name": "velocity", INSTANCE: submission.name}
    return {"name": submission.name, "namespace": submission.launch.namespace, "labels": labels}


def _files(submission: Submission) -> dict[str, Any]:
    texts = {_key(number): text for number, text in enumerate(submission.files.values())}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _metadata(submission), "data": texts}


def _key(number: int) -> str:
    """A ConfigMap's keys have fewer letters than the names of files may have."""
    return f"file-{number}"


def _service(submission: Submission) -> dict[str, Any]:
    """Names for the pods, also for those that are not ready: that is how they find each other."""
    spec = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {INSTANCE: submission.name}}
    return {"apiVersion": "v1", "kind": "Service", "metadata": _metadata(submission), "spec": spec}


def _job(submission: Submission, image: str) -> dict[str, Any]:
    launch: KubernetesConfig = submission.launch
    spec: dict[str, Any] = {
        "completionMode": "Indexed",
        "completions": launch.nodes,
        "parallelism": launch.nodes,
        # where one node ends, all do: a new attempt costs a failure of each
        "backoffLimit": launch.max_restarts * launch.nodes,
        "podFailurePolicy": {"rules": _rules()},
        "ttlSecondsAfterFinished": KEEP_SECONDS,
    }
    if launch.max_hours is not None:
        spec["activeDeadlineSeconds"] = math.ceil(launch.max_hours * HOUR_SECONDS)
    metadata = _metadata(submission)
    pod = {"metadata": {"labels": metadata["labels"]}, "spec": _pod(submission, image)}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {**spec, "template": pod}}


def _rules() -> list[dict[str, Any]]:
    def on(status: int) -> dict[str, Any]:
        return {"containerName": CONTAINER, "operator": "In", "values": [status]}

    return [
        {"action": "FailJob", "onExitCodes": on(UserError.exit_status)},
        {"action": "Ignore", "onExitCodes": on(InterruptedRun.exit_status)},
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]


def _pod(submission: Submission, image: str) -> dict[str, Any]:
    launch: KubernetesConfig = submission.launch
    names = [{"key": _key(number), "path": name} for number, name in enumerate(submission.files)]
    volumes: list[dict[str, Any]] = [
        {"name": "job", "configMap": {"name": submission.name, "items": names}},
        {"name": "home", "emptyDir": {}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": launch.shared_memory}},
    ]
    if launch.claim is not None:
        volumes.append({"name": "claim", "persistentVolumeClaim": {"claimName": launch.claim}})
    spec: dict[str, Any] = {
        "subdomain": submission.name,
        "restartPolicy": "Never",  # the Job decides, by the exit status
        "terminationGracePeriodSeconds": SAVE_SECONDS,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": _user(launch),
        "containers": [_container(submission, image)],
        "volumes": volumes,
    }
    if launch.service_account is not None:
        spec["serviceAccountName"] = launch.service_account
    if launch.node_selector:
        spec["nodeSelector"] = dict(launch.node_selector)
    if launch.tolerations:
        spec["tolerations"] = [one.model_dump(exclude_none=True) for one in launch.tolerations]
    return spec


def _user(launch: KubernetesConfig) -> dict[str, Any]:
    """No more rights than the job needs; what is on the claim belongs to the user's group."""
    return {
        "runAsNonRoot": launch.user != 0,
        "runAsUser": launch.user,
        "runAsGroup": launch.user,
        "fsGroup": launch.user,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _container(submission: Submission, image: str) -> dict[str, Any]:
    launch: KubernetesConfig = submission.launch
    mounts = [
        {"name": "job", "mountPath": JOB_FOLDER, "readOnly": True},
        {"name": "home", "mountPath": HOME},
        {"name": "shared-memory", "mountPath": "/dev/shm"},
    ]
    if launch.claim is not None:
        mounts.append({"name": "claim", "mountPath": launch.mount})
    made: dict[str, Any] = {
        "name": CONTAINER,
        "image": image,
        "command": [_literal(word) for word in submission.command("python", JOB_FOLDER)],
        "workingDir": HOME if launch.claim is None else launch.mount,
        "env": [{"name": name, "value": _literal(value)} for name, value in _variables(submission).items()],
    }
    if launch.secrets:
        made["envFrom"] = [{"secretRef": {"name": name}} for name in launch.secrets]
    if resources := _resources(launch):
        made["resources"] = resources
    return made | {
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "terminationMessagePath": VERDICT,
        "terminationMessagePolicy": "FallbackToLogsOnError",  # where a node was killed, its last lines
        "volumeMounts": mounts,
    }


def _variables(submission: Submission) -> Mapping[str, str]:
    return {
        **submission.launch.environment,
        "HOME": HOME,
        "USER": CONTAINER,  # the user's number has no name where it is not the image's own
        "VELOCITY_JOB": submission.name,
        "VELOCITY_SERVICE": submission.name,
        "VELOCITY_NODES": str(submission.launch.nodes),
        "VELOCITY_VERDICT": VERDICT,
    }


def _literal(text: str) -> str:
    """The text, which Kubernetes would read `$(NAME)` in."""
    return text.replace("$(", "$$(")


def _resources(launch: KubernetesConfig) -> dict[str, Any]:
    asked: dict[str, Any] = {}
    if launch.cpus_per_node is not None:
        asked["cpu"] = str(launch.cpus_per_node)
    if launch.memory is not None:
        asked["memory"] = launch.memory
    if launch.gpus_per_node:
        asked[GPU] = launch.gpus_per_node
    if launch.efa:
        asked |= {EFA: launch.efa, "hugepages-2Mi": HUGE_PAGES}
    return {"requests": dict(asked), "limits": dict(asked)} if asked else {}


class _Dumper(yaml.SafeDumper):
    """Texts of several lines stand as they are; lists are indented, and nothing is written once for two places."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> Any:
        return super().increase_indent(flow, False)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
