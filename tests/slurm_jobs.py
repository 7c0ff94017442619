"""Jobs on the Slurm of a laboratory: what starts them, what stands for their nodes, and how they end."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.making import write_job
from tests.slurm_laboratory import Slurm, wait_until

PATIENCE_SECONDS = 120.0
# Stands for the Python on every node, and so for `velocity node`: what it does stands in a file beside it.
STAND_IN = """#!/bin/bash
here=$(dirname "$0")
verdict() { printf '{"exit_status": %d, "why": "%s"}\\n' "$1" "$2" > "$VELOCITY_VERDICT"; }
say() { echo "node $SLURM_NODEID of $SLURM_STEP_NUM_NODES: $1" >&2; }
until_asked() {
  trap 'heard=1' USR1 TERM
  heard=''; touch "$here/up-$SLURM_NODEID"
  while [ -z "$heard" ]; do sleep 0.1; done
}
slowly() { for _ in $(seq "$1"); do sleep 1; done; }  # a signal that kills one sleep does not kill the next
. "$here/does.sh"
"""


class Job:
    """A job file in a folder of its own, from which commands are given."""

    def __init__(self, cluster: Slurm, folder: Path) -> None:
        self.cluster, self.folder, self.file = cluster, folder, folder / "job.yaml"

    def write(self, launch: Mapping[str, Any] | None = None, **sections: Any) -> None:
        launch = {"kind": "slurm", "nodes": 2, "cpus_per_node": 1, **(launch or {})}
        write_job(self.file, launch=launch, **sections)

    def does(self, script: str, **launch: Any) -> None:
        """Each of its nodes does no more than this."""
        (self.folder / "does.sh").write_text(script)
        python = self.folder / "python"
        python.write_text(STAND_IN)
        python.chmod(0o755)
        self.write({"python": str(python), **launch})

    def run(self, *more: object) -> subprocess.CompletedProcess[str]:
        return self.cluster.velocity("run", self.file, *more)

    def start(self) -> subprocess.Popen[str]:
        return self.cluster.start("run", self.file)

    @property
    def place(self) -> Path:
        """The folder of its submission."""
        return next(Path(".velocity", "jobs").iterdir())

    @property
    def id(self) -> str:
        return str(json.loads((self.place / "submitted.json").read_text())["id"])

    def ask(self, what: str) -> str:
        """Slurm sends the script a signal."""
        said = self.cluster.slurm("scancel", "--batch", f"--signal={what}", self.id)
        assert said.returncode == 0, said.stderr
        return said.stderr

    def listed(self) -> dict[str, Any]:
        (row,) = json.loads(self.cluster.velocity("jobs", "--json").stdout)
        return dict(row)

    def until_up(self, seconds: float = PATIENCE_SECONDS) -> None:
        """Both of its stand-ins wait for a signal."""
        ups = [self.folder / f"up-{node}" for node in (0, 1)]
        wait_until(lambda: all(up.exists() for up in ups), "the nodes are up", seconds)

    def until(self, state: str, seconds: float = PATIENCE_SECONDS) -> None:
        wait_until(lambda: self.cluster.show(self.id).get("JobState") == state, f"Slurm says {state}", seconds)


def ended(process: subprocess.Popen[str], seconds: float = PATIENCE_SECONDS) -> tuple[int, str]:
    said = process.communicate(timeout=seconds)[1]
    return process.returncode, said
