"""Jobs that a process of ours stays with on this machine, after the command that sent them: started, found, ended.

It knows no target: what its supervisor starts is in the submission's folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from velocity.config.launch import COMMON, LaunchConfig
from velocity.files import write_atomically
from velocity.launch.launcher import JobStatus, Submission, Submitted, state_of
from velocity.launch.supervisor import ENDED, NODES
from velocity.process import stops_wait

LOG, SUPERVISOR = "log.txt", "supervisor.json"
LOOK_SECONDS = 0.2
FIX = "its hosts end the job within minutes, and save; the same command goes on"


def node_of(host: str, command: list[str], order: Mapping[str, Any]) -> dict[str, Any]:
    """One host of `plan_of`: what starts `host.py` there, and what that is told."""
    return {"host": host, "command": command, "order": dict(order)}


def plan_of(nodes: list[dict[str, Any]], files: list[str]) -> Mapping[str, str]:
    """What a supervisor reads: the hosts, and the job's files that each of them is sent."""
    return {NODES: json.dumps({"files": files, "nodes": nodes}, indent=1) + "\n"}


def settings(launch: LaunchConfig, **more: Any) -> str:
    """The launch section as an override: the files that are sent may hold another, or one that means nothing there."""
    values = {"kind": launch.model_dump()["kind"], **launch.model_dump(include=set(COMMON), exclude_defaults=True)}
    return f"launch={json.dumps({**values, **more})}"


def start(submission: Submission) -> Submitted:
    """A supervisor is at work on what lies in the submission's folder, whatever becomes of us."""
    folder = submission.folder
    command = [sys.executable, "-m", "velocity.launch.supervisor", str(folder)]
    # born so, it hears us also if we ask it to stop while it starts
    with (folder / LOG).open("ab") as log, stops_wait():
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    facts = {"pid": process.pid, "started": _started(process.pid)}
    write_atomically(folder / SUPERVISOR, json.dumps(facts) + "\n")
    outputs = [job.output for job in submission.jobs]
    name, kind = submission.name, submission.launch.kind
    return Submitted(name, kind, f"process {process.pid}", folder, outputs, time.time())


def status(submitted: Submitted) -> JobStatus:
    """Where the job is, as its supervisor wrote; or that this one is gone."""
    alive = _supervisor(submitted.folder) is not None  # first: it writes its last word before it ends
    ended = submitted.folder / ENDED
    if ended.is_file():
        said = json.loads(ended.read_text(encoding="utf-8"))
        return JobStatus(state_of(said["exit_status"]), said["exit_status"], said["why"])
    if alive:
        return JobStatus("running")
    why = f"the process that watched it was killed\n  where: {submitted.folder / LOG}\n  fix:   {FIX}"
    return JobStatus("failed", 1, why)


def logs(submitted: Submitted, *, follow: bool) -> Iterator[str]:
    """The lines that its hosts have printed; with `follow` until it is over."""
    with (submitted.folder / LOG).open(encoding="utf-8", errors="replace") as stream:
        rest = ""
        while True:
            over = not follow or status(submitted).over  # first: what comes before its end is read below
            *lines, rest = (rest + stream.read()).split("\n")  # of a line that is half written the end is to come
            yield from lines
            if over:
                break
            time.sleep(LOOK_SECONDS)


def cancel(submitted: Submitted) -> None:
    """Its supervisor was asked to stop the job: a second time it is killed."""
    supervisor = _supervisor(submitted.folder)
    if supervisor is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(supervisor, signal.SIGTERM)


def _supervisor(folder: Path) -> int | None:
    """The process that watches the job; None where it is gone, whoever has its number now."""
    facts = json.loads((folder / SUPERVISOR).read_text(encoding="utf-8"))
    return int(facts["pid"]) if _started(facts["pid"]) == facts["started"] else None


def _started(pid: int) -> int | None:
    """When the process has started, in ticks since the machine has; None where it has ended."""
    try:
        state, *values = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(values[18])
