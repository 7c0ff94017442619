"""A Kubernetes cluster, by kubectl: jobs are applied, watched, followed and deleted. It knows no task."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from velocity.config.kubernetes import KubernetesConfig
from velocity.errors import UserError, VelocityError
from velocity.files import write_atomically
from velocity.launch.container import pinned_image
from velocity.launch.kubernetes import logs as pod_logs
from velocity.launch.kubernetes.inputs import check_inputs
from velocity.launch.kubernetes.kubectl import Kubectl, Refused, current_context
from velocity.launch.kubernetes.manifest import FILE, INSTANCE, NO_IMAGE, manifest
from velocity.launch.kubernetes.state import Pod, pods_of, status_of
from velocity.launch.launcher import JobStatus, Submission, Submitted

CANCELLED = "cancelled"
MOST_BYTES = 1_000_000  # of a ConfigMap, which holds the job files
WRITTEN_BY_MANY = "ReadWriteMany"
RIGHTS = (
    ("create", "jobs.batch"), ("create", "services"), ("create", "configmaps"), ("delete", "jobs.batch"),
    ("list", "pods"), ("get", "pods", "--subresource=log"),
)  # fmt: skip


class KubernetesLauncher:
    """Jobs as Indexed Jobs of a cluster."""

    def render(self, submission: Submission) -> Mapping[str, str]:
        """The manifest. The image is the job's, or the one that was pushed last from here."""
        return {FILE: manifest(submission, image_of(submission.launch) or NO_IMAGE)}

    def check(self, submission: Submission) -> None:
        """Nothing, or UserError for what the cluster, or its pods, would refuse later."""
        launch: KubernetesConfig = submission.launch
        check_inputs(submission.jobs)
        check_image(launch)
        if sum(len(text.encode()) for text in submission.files.values()) > MOST_BYTES:
            raise UserError("the job files are longer than a ConfigMap may be", "command line", "submit them apart")
        kubectl = Kubectl(launch.context or current_context(), launch.namespace)
        check_cluster(kubectl, launch)
        try:
            kubectl.ask("apply", "--dry-run=server", "--filename=-", given=self.render(submission)[FILE])
        except Refused as error:
            what = f"the cluster would refuse the job: {error.problems[0].what}"
            raise UserError(what, kubectl.where, "velocity run --dry-run prints it") from None

    def submit(self, submission: Submission) -> Submitted:
        """The cluster has it."""
        launch: KubernetesConfig = submission.launch
        kubectl = Kubectl(launch.context or current_context(), launch.namespace)
        try:
            kubectl.ask("apply", f"--filename={submission.folder / FILE}")
        except VelocityError:
            with suppress(VelocityError):
                _delete(kubectl, submission.name)
            raise
        with suppress(VelocityError):  # only in order to tidy up: what belongs to the Job is removed with it
            _give_to_the_job(kubectl, submission.name)
        facts = {"context": kubectl.context, "namespace": kubectl.namespace}
        outputs = [job.output for job in submission.jobs]
        identity = f"{launch.namespace}/{submission.name}"
        return Submitted(submission.name, "kubernetes", identity, submission.folder, outputs, time.time(), facts)

    def status(self, submitted: Submitted) -> JobStatus:
        """Where it is now."""
        return _look(submitted)[1]

    def logs(self, submitted: Submitted, *, follow: bool) -> Iterator[str]:
        """The lines of all pods: node 0's as they are, others' with their number before them."""
        kubectl = _kubectl(submitted)
        if not follow:
            yield from pod_logs.lines_so_far(kubectl, _look(submitted)[0])
            return

        def look() -> tuple[Sequence[Pod], bool, str]:
            pods, status = _look(submitted)
            gone = status.state == "unknown"  # nobody will ever say more of it
            return pods, status.over or gone, "" if status.over or gone else status.why

        yield from pod_logs.follow(kubectl, look)

    def cancel(self, submitted: Submitted) -> None:
        """The Job is deleted, and so its pods: they are told to stop, and have minutes to save."""
        if _look(submitted)[1].over:
            return
        write_atomically(submitted.folder / CANCELLED, time.strftime("%Y-%m-%dT%H:%M:%S\n"))
        _delete(_kubectl(submitted), submitted.name)


def image_of(launch: KubernetesConfig) -> str | None:
    """The job's image; None where it names none and none was pushed from here."""
    if launch.image is not None:
        return launch.image
    pushed = pinned_image()
    return None if pushed is None else pushed.image


def check_image(launch: KubernetesConfig) -> None:
    """Nothing, or UserError where there is no image, or one that cannot use the GPUs."""
    if image_of(launch) is None:
        fix = "velocity image build, then velocity image push --to REGISTRY/NAME; or name one that exists"
        raise UserError("the job has no image, and none was pushed from this folder", "launch.image", fix)
    pushed = pinned_image() if launch.image is None else None
    if pushed is not None and pushed.accelerator == "cpu" and launch.gpus_per_node:
        what = f"{pushed.image} is the image for machines without a GPU, and launch.gpus_per_node asks for some"
        raise UserError(what, "launch.image", "velocity image build --accelerator cuda, and push it")


def check_cluster(kubectl: Kubectl, launch: KubernetesConfig) -> None:
    """Nothing, or UserError where the namespace, a right, the claim or a secret is missing."""
    _must_exist(kubectl, "namespace", launch.namespace, "launch.namespace")
    for verb, kind, *options in RIGHTS:
        if not kubectl.may(verb, kind, *options):
            what = f"you may not {verb} {kind} in the namespace {launch.namespace}"
            raise UserError(what, "launch.namespace", "ask for the rights that docs/guides/launching.md lists")
    for name in launch.secrets:
        _must_exist(kubectl, "secret", name, "launch.secrets")
    if launch.service_account is not None:
        _must_exist(kubectl, "serviceaccount", launch.service_account, "launch.service_account")
    if launch.claim is not None:
        modes = _must_exist(kubectl, "persistentvolumeclaim", launch.claim, "launch.claim").get("accessModes", [])
        if launch.nodes > 1 and modes and WRITTEN_BY_MANY not in modes:
            what = f"the claim {launch.claim} is {', '.join(modes)}, and {launch.nodes} nodes write on it"
            raise UserError(
                what, "launch.claim", f"one that is {WRITTEN_BY_MANY}, or checkpoint.mirror without a claim"
            )


def _must_exist(kubectl: Kubectl, kind: str, name: str, key: str) -> dict[str, Any]:
    """Its spec; of what we may not look at, nothing."""
    try:
        if kind == "secret":  # its name alone: nobody has to see what is in it
            kubectl.ask("get", kind, name, "--output", "name")
            return {}
        found = kubectl.get(kind, name)
    except Refused as error:
        if error.forbidden:
            return {}
        if not error.not_found:
            raise
        found = None
    if found is None:
        fix = f"kubectl get {kind}s lists those that there are"
        raise UserError(f"the cluster has no {kind} {name} in the namespace {kubectl.namespace}", key, fix)
    spec: dict[str, Any] = found.get("spec", {})
    return spec


def _give_to_the_job(kubectl: Kubectl, name: str) -> None:
    """Service and ConfigMap go when the Job does."""
    job = kubectl.get("job", name)
    if job is None:
        return
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": job["metadata"]["uid"]}
    patch = json.dumps({"metadata": {"ownerReferences": [owner]}})
    for kind in ("service", "configmap"):
        kubectl.ask("patch", kind, name, "--type=merge", f"--patch={patch}")


def _delete(kubectl: Kubectl, name: str) -> None:
    objects = [f"{kind}/{name}" for kind in ("job", "service", "configmap")]
    kubectl.ask("delete", *objects, "--ignore-not-found", "--wait=false")


def _look(submitted: Submitted) -> tuple[Sequence[Pod], JobStatus]:
    kubectl = _kubectl(submitted)
    job = kubectl.get("job", submitted.name)
    pods = pods_of(kubectl.get("pods", "--selector", f"{INSTANCE}={submitted.name}"))
    return pods, status_of(job, pods, cancelled=(submitted.folder / CANCELLED).exists())


def _kubectl(submitted: Submitted) -> Kubectl:
    return Kubectl(submitted.facts["context"], submitted.facts["namespace"])
