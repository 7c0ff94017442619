"""A run folder as it is found: its job, and the state that it is in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from velocity.config.load import read_resolved
from velocity.config.resolved import is_resolved
from velocity.errors import UserError
from velocity.runs.folder import RunFolder


def open_run(path: Path) -> tuple[RunFolder, Any, dict[str, Any]]:
    """The folder, its job, and its status; UserError where it is no run.

    The state is `killed` where the status says that the run goes on, and no process holds the folder.
    """
    run = RunFolder(path)
    if not is_resolved(run.job):
        raise UserError("not a run folder: it has no job.yaml of a run", str(path), "give the output folder of a job")
    return run, read_resolved(run.job), status_of(run)


def status_of(run: RunFolder) -> dict[str, Any]:
    """The status of a run on this machine's disk; `killed` where it says `running`, and no process holds the folder."""
    status = run.status()
    if status["state"] == "running" and not run.is_held():
        return {**status, "state": "killed"}
    return status
