"""A Kubernetes cluster for tests: an API server that the real kubectl talks to, a Job controller, pods as processes.

It keeps what Kubernetes' documentation says of Indexed Jobs, pod failure policies and termination messages, and refuses
what the schemas of Kubernetes refuse. Scheduling, DNS, images and rights it has none.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kubernetes_validate
import yaml

VERSION = "1.34"
INDEX = "batch.kubernetes.io/job-completion-index"
RESOURCES = {
    "v1": {"configmaps": "ConfigMap", "services": "Service", "pods": "Pod", "namespaces": "Namespace",
           "persistentvolumeclaims": "PersistentVolumeClaim", "secrets": "Secret", "serviceaccounts": "ServiceAccount"},
    "batch/v1": {"jobs": "Job"},
    "authorization.k8s.io/v1": {"selfsubjectaccessreviews": "SelfSubjectAccessReview"},
}  # fmt: skip
# Pods start in a thread, beside which pytest takes variables away: copying the environment there fails now and then.
INHERITED = dict(os.environ)
Start = Callable[[int, Sequence[str], Mapping[str, str], Path], "subprocess.Popen[str]"]


def now() -> str:
    """The time as Kubernetes writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class Cluster:
    """What the cluster holds. `start` runs the command of a node's pod, with a folder for what it prints."""

    def __init__(self, folder: Path, start: Start) -> None:
        self.folder, self.start = folder, start
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.forbidden: set[str] = set()  # resources that nobody may create
        self.exhausted: set[str] = set()  # resources of which the quota is used up
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.lock = threading.RLock()
        self.over = threading.Event()
        self.add("namespaces", {"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "default"}})

    def add(self, kind: str, item: dict[str, Any]) -> dict[str, Any]:
        """The object exists from now on."""
        item["metadata"] |= {"uid": str(uuid.uuid4()), "creationTimestamp": now(), "resourceVersion": "1"}
        with self.lock:
            self.objects[kind, item["metadata"]["name"]] = item
        return item

    def listed(self, kind: str, selector: str = "") -> list[dict[str, Any]]:
        """The objects of that kind with that label."""
        name, _, value = selector.partition("=")
        with self.lock:
            found = [item for (its, _), item in self.objects.items() if its == kind]
        return [one for one in found if not name or one["metadata"].get("labels", {}).get(name) == value]

    def delete(self, kind: str, name: str) -> None:
        """It is gone; a Job's pods are told to end, and go once they have."""
        with self.lock:
            self.objects.pop((kind, name), None)
            for pod in self.listed("pods", f"job-name={name}") if kind == "jobs" else []:
                self.end_pod(pod)

    def end_pod(self, pod: dict[str, Any]) -> None:
        """SIGTERM, as kubelet sends it to the first process of the container."""
        pod["metadata"]["deletionTimestamp"] = now()
        process = self.processes.get(pod["metadata"]["name"])
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
        else:
            self.objects.pop(("pods", pod["metadata"]["name"]), None)

    # ---- kubelet and Job controller

    def turn(self) -> None:
        """What the controllers do, again and again."""
        while not self.over.wait(0.1):
            with self.lock:
                for pod in self.listed("pods"):
                    self._observe(pod)
                for job in self.listed("jobs"):
                    self._reconcile(job)

    def _observe(self, pod: dict[str, Any]) -> None:
        name = pod["metadata"]["name"]
        status = self.processes[name].poll()
        if status is None or pod["status"]["phase"] != "Running":
            return
        message = (self.folder / name / "termination-log").read_text()[:4096]
        if not message and status:
            message = "\n".join(log_of(self.folder / name)[-80:])[-2048:]  # FallbackToLogsOnError
        code = status if status >= 0 else 128 - status
        ended = {"exitCode": code, "reason": "Completed" if code == 0 else "Error", "message": message}
        pod["status"]["phase"] = "Succeeded" if code == 0 else "Failed"
        pod["status"]["containerStatuses"][0]["state"] = {"terminated": {**ended, "finishedAt": now()}}
        if "deletionTimestamp" in pod["metadata"]:
            self.objects.pop(("pods", name))

    def _reconcile(self, job: dict[str, Any]) -> None:
        spec, status = job["spec"], job.setdefault("status", {})
        if status.get("conditions"):
            return
        pods = self.listed("pods", f"job-name={job['metadata']['name']}")
        codes = [_code(pod) for pod in pods if pod["status"]["phase"] == "Failed"]
        acts = [self._action(spec, code) for code in codes]
        if "FailJob" in acts:
            return self._finish(job, "Failed", "PodFailurePolicy", "a container failed with a code of a FailJob rule")
        if acts.count("Count") > spec["backoffLimit"]:
            return self._finish(job, "Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
        done = {_index(pod) for pod in pods if pod["status"]["phase"] == "Succeeded"}
        if len(done) == spec["completions"]:
            return self._finish(job, "Complete", "CompletionsReached", "")
        alive = {_index(pod) for pod in pods if pod["status"]["phase"] == "Running"}
        for index in range(spec["completions"]):
            if index not in done | alive:
                self._start(job, index)

    @staticmethod
    def _action(spec: Mapping[str, Any], code: int) -> str:
        rules = spec["podFailurePolicy"]["rules"]
        return next((one["action"] for one in rules if code in one.get("onExitCodes", {}).get("values", [])), "Count")

    def _finish(self, job: dict[str, Any], kind: str, reason: str, message: str) -> None:
        job["status"]["conditions"] = [{"type": kind, "status": "True", "reason": reason, "message": message}]
        for pod in self.listed("pods", f"job-name={job['metadata']['name']}"):
            if pod["status"]["phase"] == "Running":
                self.end_pod(pod)

    def _start(self, job: dict[str, Any], index: int) -> None:
        spec, name = job["spec"]["template"]["spec"], f"{job['metadata']['name']}-{index}-{uuid.uuid4().hex[:5]}"
        folder = self.folder / name
        folder.mkdir(parents=True)
        (folder / "termination-log").write_text("")
        mounted = {one["name"]: one for one in spec["volumes"]}["job"]["configMap"]
        texts = self.objects["configmaps", mounted["name"]]["data"]
        for item in mounted["items"]:
            (folder / item["path"]).write_text(texts[item["key"]])
        container = spec["containers"][0]
        places = {"/job": str(folder), "/dev/termination-log": str(folder / "termination-log")}
        places["/home/velocity"] = str(folder / "home")
        command = [_moved(word, places) for word in container["command"]]
        variables = {one["name"]: _moved(one["value"], places) for one in container["env"]}
        self.processes[name] = self.start(index, command, {**variables, "JOB_COMPLETION_INDEX": str(index)}, folder)
        labels = {**job["spec"]["template"]["metadata"]["labels"], "job-name": job["metadata"]["name"]}
        state = {"running": {"startedAt": now()}}
        self.add("pods", {
            "kind": "Pod", "apiVersion": "v1", "spec": {"nodeName": f"machine-{index}", "containers": [container]},
            "metadata": {"name": name, "namespace": "default", "labels": {**labels, INDEX: str(index)}},
            "status": {"phase": "Running", "containerStatuses": [{"name": container["name"], "state": state}]},
        })  # fmt: skip


def _index(pod: Mapping[str, Any]) -> int:
    return int(pod["metadata"]["labels"][INDEX])


def _code(pod: Mapping[str, Any]) -> int:
    return int(pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"])


def _moved(text: str, places: Mapping[str, str]) -> str:
    """As the container would see it, but below a folder of the test; Kubernetes reads `$$(` as `$(`."""
    for place, there in places.items():
        if text == place or text.startswith(f"{place}/"):
            text = there + text.removeprefix(place)
    return text.replace("$$(", "$(")


def log_of(folder: Path) -> list[str]:
    """What a pod has printed, a line each."""
    return (folder / "log").read_text(errors="replace").splitlines()


def run_here(index: int, command: Sequence[str], variables: Mapping[str, str], folder: Path) -> subprocess.Popen[str]:
    """The command of a pod, on this machine."""
    with (folder / "log").open("w") as log:
        return subprocess.Popen(
            command, env={**INHERITED, **variables}, cwd=folder, stdout=log, stderr=subprocess.STDOUT, text=True
        )


@contextmanager
def running(folder: Path, start: Start = run_here) -> Iterator[Cluster]:
    """A cluster, and in `folder`/kubeconfig how kubectl finds it."""
    cluster = Cluster(folder / "pods", start)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Api", (_Api,), {"cluster": cluster}))
    server.daemon_threads = True
    named = {"cluster": "small", "user": "me"}
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "small",
        "clusters": [{"name": "small", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "users": [{"name": "me", "user": {}}], "contexts": [{"name": "small", "context": named}],
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kubeconfig").write_text(yaml.safe_dump(config))
    threads = [threading.Thread(target=server.serve_forever, args=(0.05,)), threading.Thread(target=cluster.turn)]
    for thread in threads:
        thread.start()
    try:
        yield cluster
    finally:
        cluster.over.set()
        server.shutdown()
        server.server_close()
        for thread in threads:
            thread.join()
        for process in cluster.processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()


class _Api(BaseHTTPRequestHandler):
    """What kubectl asks of an API server for these verbs."""

    protocol_version = "HTTP/1.1"
    cluster: Cluster

    def do_GET(self) -> None:
        path, query = self._asked()
        parts = path.strip("/").split("/")
        if (found := _discovery(path)) is not None:
            return self._answer(200, found)
        kind, name, below = _resource(parts)
        if kind == "pods" and below == "log":
            return self._log(name, query)
        if not name:
            items = self.cluster.listed(kind, query.get("labelSelector", [""])[0])
            with self.cluster.lock:
                items = json.loads(json.dumps(items))
            return self._answer(200, {"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items})
        item = self.cluster.objects.get((kind, name))
        return self._answer(200, item) if item else self._missing(kind, name)

    def do_POST(self) -> None:
        path, query = self._asked()
        kind, _, _ = _resource(path.strip("/").split("/"))
        body = self._body()
        if kind == "selfsubjectaccessreviews":  # in protobuf, where a resource's name stands as it is
            allowed = not any(one.encode() in body for one in self.cluster.forbidden)
            review = {"kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "spec": {}}
            return self._answer(201, {**review, "status": {"allowed": allowed}})
        item = json.loads(body)
        try:
            kubernetes_validate.validate(item, VERSION, strict=True)
        except kubernetes_validate.ValidationError as error:
            return self._refuse(
                422, "Invalid", f'{item["kind"]} "{item["metadata"]["name"]}" is invalid: {error.message}'
            )
        if "dryRun" not in query and kind in self.cluster.exhausted:
            return self._refuse(403, "Forbidden", f"{kind} is forbidden: exceeded quota")
        if "dryRun" not in query:
            item = self.cluster.add(kind, item)
        return self._answer(201, item)

    def do_PATCH(self) -> None:
        kind, name, _ = _resource(self._asked()[0].strip("/").split("/"))
        item, patch = self.cluster.objects.get((kind, name)), json.loads(self._body())
        if item is None:
            return self._missing(kind, name)
        item["metadata"].update(patch.get("metadata", {}))
        return self._answer(200, item)

    def do_DELETE(self) -> None:
        kind, name, _ = _resource(self._asked()[0].strip("/").split("/"))
        self._body()
        if (kind, name) not in self.cluster.objects:
            return self._missing(kind, name)
        self.cluster.delete(kind, name)
        return self._answer(200, {"kind": "Status", "apiVersion": "v1", "status": "Success"})

    def _log(self, name: str, query: Mapping[str, Sequence[str]]) -> None:
        """The pod's lines; followed until its container has ended."""
        follow, stamped = "follow" in query, "timestamps" in query
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Connection", "close")
        self.end_headers()
        sent, process = 0, self.cluster.processes[name]
        while True:
            ended = process.poll() is not None
            lines = log_of(self.cluster.folder / name)
            for number, line in enumerate(lines[sent:], sent):
                stamp = f"2026-01-01T00:00:{number // 1000:02}.{number % 1000:03}000000Z " if stamped else ""
                self.wfile.write(f"{stamp}{line}\n".encode())
            self.wfile.flush()
            sent = len(lines)
            if ended or not follow:
                break
            time.sleep(0.1)
        self.close_connection = True

    def _asked(self) -> tuple[str, dict[str, list[str]]]:
        split = urlsplit(self.path)
        return split.path, parse_qs(split.query)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, code: int, value: Any) -> None:
        with self.cluster.lock:
            body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _missing(self, kind: str, name: str) -> None:
        self._refuse(404, "NotFound", f'{kind} "{name}" not found')

    def _refuse(self, code: int, reason: str, message: str) -> None:
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code}
        self._answer(code, {**status, "message": message})

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: a test's output is its own."""


def _resource(parts: Sequence[str]) -> tuple[str, str, str]:
    """(plural, name, what is below it) of an address; the namespace is always the same."""
    rest = [*parts[2:], "", ""] if parts[0] == "api" else [*parts[3:], "", ""]
    if rest[0] == "namespaces" and rest[2]:
        rest = rest[2:]
    return rest[0], rest[1], rest[2] if len(rest) > 2 else ""


def _discovery(path: str) -> dict[str, Any] | None:
    """What there is, as kubectl learns it first."""
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        versions = [(one.split("/")[0], {"groupVersion": one, "version": "v1"}) for one in RESOURCES if "/" in one]
        groups = [{"name": name, "versions": [version], "preferredVersion": version} for name, version in versions]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    if path == "/version":
        return {"major": "1", "minor": VERSION.split(".")[1], "gitVersion": f"v{VERSION}.0"}
    if path == "/openapi/v3":
        return {"paths": {_under(one): {"serverRelativeURL": f"/openapi/v3/{_under(one)}"} for one in RESOURCES}}
    for group, resources in RESOURCES.items():
        if path == f"/{_under(group)}":
            return {"kind": "APIResourceList", "groupVersion": group, "resources": [*_listed(resources)]}
        if path == f"/openapi/v3/{_under(group)}":
            return {"openapi": "3.0.0", "info": {"title": "small", "version": "1"}, "paths": dict(_paths(group))}
    return None


def _listed(resources: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    verbs = ["get", "list", "create", "patch", "delete"]
    for name, kind in resources.items():
        its = {"name": name, "singularName": kind.lower(), "kind": kind, "namespaced": kind != "Namespace"}
        yield {**its, "verbs": verbs}


def _under(group: str) -> str:
    return f"api/{group}" if "/" not in group else f"apis/{group}"


def _paths(group: str) -> Iterator[tuple[str, Any]]:
    """That the server itself refuses unknown fields."""
    name, _, version = group.rpartition("/")
    for plural, kind in RESOURCES[group].items():
        patch = {
            "x-kubernetes-group-version-kind": {"group": name, "version": version, "kind": kind},
            "parameters": [{"name": one, "in": "query"} for one in ("dryRun", "fieldValidation")],
            "responses": {},
        }
        yield f"/{_under(group)}/namespaces/{{namespace}}/{plural}/{{name}}", {"patch": patch}
