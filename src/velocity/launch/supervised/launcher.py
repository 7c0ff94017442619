"""Jobs that a process of ours stays with on this machine, after the command that sent them: started, found, ended.

It knows no way to a host: `way.py` says what one is, and what the supervisor starts lies in the submission's folder.
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

from velocity.files import write_atomically
from velocity.launch.launcher import JobStatus, Submission, Submitted, state_of
from velocity.launch.supervised.supervisor import ENDED
from velocity.launch.supervised.way import Way, rendered
from velocity.process import stops_wait

LOG, SUPERVISOR = "log.txt", "supervisor.json"
LOOK_SECONDS = 0.2
FIX = "its hosts end the job within minutes, and save; the same command goes on"


class SupervisedLauncher:
    """Runs jobs on the hosts that a way leads to, under a supervisor here."""

    def __init__(self, way: Way) -> None:
        self.way = way

    def render(self, submission: Submission) -> Mapping[str, str]:
        """For each host the command that leads there, and the order that it is given."""
        return rendered(self.way.hosts(submission), list(submission.files) if self.way.sends else [])

    def check(self, submission: Submission) -> None:
        """Nothing, or UserError with each host that could not run the jobs."""
        self.way.check(submission)

    def submit(self, submission: Submission) -> Submitted:
        """A supervisor is at work on what lies in the submission's folder, whatever becomes of us."""
        folder = submission.folder
        command = [sys.executable, "-m", "velocity.launch.supervised.supervisor", str(folder)]
        # born so, it hears us also if we ask it to stop while it starts
        with (folder / LOG).open("ab") as log, stops_wait():
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        facts = {"pid": process.pid, "started": _started(process.pid)}
        write_atomically(folder / SUPERVISOR, json.dumps(facts) + "\n")
        outputs = [job.output for job in submission.jobs]
        name, kind = submission.name, submission.launch.kind
        return Submitted(name, kind, f"process {process.pid}", folder, outputs, time.time())

    def status(self, submitted: Submitted) -> JobStatus:
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

    def logs(self, submitted: Submitted, *, follow: bool) -> Iterator[str]:
        """The lines that its hosts have printed; with `follow` until it is over."""
        with (submitted.folder / LOG).open(encoding="utf-8", errors="replace") as stream:
            rest = ""
            while True:
                over = not follow or self.status(submitted).over  # first: what comes before its end is read below
                *lines, rest = (rest + stream.read()).split("\n")  # of a line that is half written the end is to come
                yield from lines
                if over:
                    break
                time.sleep(LOOK_SECONDS)

    def cancel(self, submitted: Submitted) -> None:
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
