"""A Kubernetes cluster whose machines are the hosts of a laboratory: the real kubectl, and pods as processes there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests import kubernetes_cluster as small
from tests.kubernetes_cluster import Cluster
from tests.laboratory import Laboratory, laboratory

CLAIM = "files"


class Pods:
    """A folder that is what the claim holds, and a cluster whose machines are the laboratory's hosts."""

    cluster: Cluster

    def __init__(self, folder: Path, lab: Laboratory) -> None:
        self.folder, self.lab = folder, lab
        self.own_disks = False  # then each pod has an empty one in place of the claim

    def start(
        self, index: int, command: Sequence[str], variables: Mapping[str, str], folder: Path
    ) -> subprocess.Popen[str]:
        """What the container runtime would: the container's own command and variables, on that host."""
        self._name_pods(variables)
        (folder / "home").mkdir()
        python, *arguments = command
        assert python == "python"
        at = folder / "home" if self.own_disks else self.folder
        inherited = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH") if name in os.environ}
        with (folder / "log").open("w") as log:
            return subprocess.Popen(
                self.lab.command(self.lab.names[index], sys.executable, *arguments), env={**inherited, **variables},
                cwd=at, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip

    def _name_pods(self, variables: Mapping[str, str]) -> None:
        """What the headless Service does for their names."""
        pod = f"{variables['VELOCITY_JOB']}-{{}}.{variables['VELOCITY_SERVICE']}"
        lines = [f"{self.lab.addresses[other]} {pod.format(number)}" for number, other in enumerate(self.lab.names)]
        for name in self.lab.names:
            known = Path("/etc/netns", name, "hosts")
            if lines[0] not in known.read_text():
                known.write_text(known.read_text() + "\n".join(lines) + "\n")

    def of(self, job: str) -> list[dict[str, Any]]:
        """The pods of a job, the oldest first."""
        return [pod for pod in self.cluster.listed("pods") if pod["metadata"]["labels"]["job-name"] == job]


@contextmanager
def pods_on(lab: Laboratory, folder: Path) -> Iterator[Pods]:
    """A cluster on these hosts, as long as this lasts; the folder is the current one, and kubectl finds the cluster."""
    pods = Pods(folder, lab)
    with small.running(folder / "cluster", pods.start) as pods.cluster:
        claim = {"kind": "PersistentVolumeClaim", "apiVersion": "v1", "metadata": {"name": CLAIM}}
        pods.cluster.add("persistentvolumeclaims", {**claim, "spec": {"accessModes": ["ReadWriteMany"]}})
        before = Path.cwd(), os.environ.get("KUBECONFIG")
        os.chdir(folder)
        os.environ["KUBECONFIG"] = str(folder / "cluster" / "kubeconfig")
        try:
            yield pods
        finally:
            os.chdir(before[0])
            os.environ.pop("KUBECONFIG")
            if before[1] is not None:
                os.environ["KUBECONFIG"] = before[1]


@contextmanager
def kubernetes(folder: Path) -> Iterator[Pods]:
    """A laboratory with such a cluster; the test is skipped where there can be none."""
    with laboratory(folder / "lab") as lab, pods_on(lab, folder) as pods:
        yield pods
