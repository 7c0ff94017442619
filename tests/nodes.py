"""Two nodes of one job on this machine: a process each, as any target starts them, with one disk or with two."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.commands import processes_naming, step_lines
from velocity.launch.local import free_port

HOSTS = ("localhost", "127.0.0.1")  # two names of one machine
PATIENCE_SECONDS = 180


class TwoNodes:
    """A job that two nodes run: each in a folder of its own, where a relative output lies on its own disk."""

    def __init__(self, folder: Path, job: Path, output: str) -> None:
        """`output` is as it stands in the job."""
        self.folder, self.job, self.output = folder, job, output
        self.port = free_port()
        self.processes: list[subprocess.Popen[bytes]] = []

    def home(self, node: int) -> Path:
        """A node's working folder."""
        return self.folder / f"host-{node}"

    def run(self, node: int = 0) -> Path:
        """The run folder as a node sees it."""
        return self.home(node) / self.output

    def said(self, node: int = 0) -> str:
        """What a node wrote to standard error."""
        return (self.home(node) / "err.txt").read_text()

    def verdict(self, node: int = 0) -> dict[str, Any]:
        """How a node says that it went."""
        found: dict[str, Any] = json.loads((self.home(node) / "verdict.json").read_text())
        return found

    def start(self, *overrides: str) -> None:
        """Both nodes run."""
        self.processes = []
        for node in range(len(HOSTS)):
            self.home(node).mkdir(exist_ok=True)
            (self.home(node) / "verdict.json").unlink(missing_ok=True)
            place = {"VELOCITY_HOSTS": ",".join(HOSTS), "VELOCITY_NODE": str(node), "VELOCITY_PORT": str(self.port)}
            environment = {**os.environ, **place, "VELOCITY_VERDICT": str(self.home(node) / "verdict.json")}
            command = [sys.executable, "-m", "velocity", "node", "ssh", str(self.job), *overrides]
            with (self.home(node) / "err.txt").open("wb") as err:
                self.processes.append(
                    subprocess.Popen(
                        command,
                        cwd=self.home(node),
                        env=environment,
                        stderr=err,
                        stdout=err,
                        start_new_session=True,
                        preexec_fn=partial(_have_cores, node),
                    )  # fmt: skip
                )

    def ranks(self, node: int) -> list[int]:
        """The processes of a node's ranks."""
        agents = processes_naming(f"velocity.distributed.node --node {node} 2 {HOSTS[0]}:")
        ours = [one for one in agents if Path(f"/proc/{one}/cwd").resolve() == self.home(node).resolve()]
        found = processes_naming("begin velocity.training.run") + processes_naming("begin velocity.inference.run")
        return [one for one in found if _parent(one) in ours]

    def wait_for(self, what: Callable[[], object]) -> None:
        """Until then, or until both have ended."""
        end = time.monotonic() + PATIENCE_SECONDS
        while not what():
            assert time.monotonic() < end and any(one.poll() is None for one in self.processes), self.said()
            time.sleep(0.05)

    def do_steps(self, step: int) -> None:
        """Wait until that step is done."""
        self.wait_for(lambda: any(line["step"] >= step for line in step_lines(self.run())))

    def end(self) -> list[int]:
        """The exit statuses, once both have ended; nothing of them is left."""
        try:
            return [one.wait(PATIENCE_SECONDS) for one in self.processes]
        finally:
            for one in self.processes:
                if one.poll() is None:
                    os.killpg(one.pid, signal.SIGKILL)
                    one.wait()
            left = [pid for node in range(len(HOSTS)) for pid in self.ranks(node)]
            assert not left, "a rank outlived its node"


def _have_cores(node: int) -> None:
    """Each node has cores of its own, where there are two."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[node % len(cores) :: len(HOSTS)])


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
