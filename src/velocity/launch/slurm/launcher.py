"""A Slurm cluster: jobs are sent with sbatch from a machine that has it. It knows no task and no rank."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from velocity.errors import JobError
from velocity.launch.launcher import JobStatus, State, Submission, Submitted, state_of
from velocity.launch.slurm import says
from velocity.launch.slurm.says import ask, facts_of, is_gone, refused, short
from velocity.launch.slurm.script import ENDED, LOG, SCRIPT, script
from velocity.terminal import say

LOOK_SECONDS, ASK_SECONDS = 1.0, 5.0  # how often the log is looked at, and Slurm is asked
SHARED_SECONDS = 10.0  # how long a shared disk may keep from us what a node has written
WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT")
RUNNING = (
    "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING",
)  # fmt: skip
AGAIN = "the same command goes on from the last checkpoint"
# How a job ends that was given no time to say so: its state, its exit status, what and how to mend it.
CUT_OFF: Mapping[str, tuple[State, int, str, str]] = {
    "TIMEOUT": ("interrupted", 75, "the time was up before it had saved", f"raise launch.warning_seconds; {AGAIN}"),
    "DEADLINE": ("interrupted", 75, "the deadline was over before it had saved", AGAIN),
    "PREEMPTED": ("interrupted", 75, "another job took its nodes before it had saved", AGAIN),
    "NODE_FAIL": ("failed", 1, "a node failed", AGAIN),
    "BOOT_FAIL": ("failed", 1, "a node did not start", AGAIN),
    "OUT_OF_MEMORY": ("failed", 1, "a node's memory is full", "raise launch.memory, or choose a thriftier strategy"),
    "CANCELLED": ("cancelled", 75, "it was cancelled before it had saved", AGAIN),
}


class SlurmLauncher:
    """Jobs go to the Slurm whose commands are installed here."""

    def render(self, submission: Submission) -> Mapping[str, str]:
        """The script for sbatch."""
        return {SCRIPT: script(submission)}

    def check(self, submission: Submission) -> None:
        """Slurm would take the job, and could start it; UserError where it could not."""
        says.check(submission.launch, script(submission))

    def submit(self, submission: Submission) -> Submitted:
        """It is in the queue."""
        sent = ask("sbatch", "--parsable", str(submission.folder / SCRIPT))
        if sent.returncode:
            shutil.rmtree(submission.folder)
            raise refused(sent.stderr)
        job = sent.stdout.strip().partition(";")[0]  # a cluster's name may follow
        outputs = [job.output for job in submission.jobs]
        return Submitted(submission.name, "slurm", job, submission.folder, outputs, time.time())

    def status(self, submitted: Submitted) -> JobStatus:
        """As Slurm says, which forgets a job minutes after its end; then as it has said itself."""
        facts = facts_of(submitted)
        state = facts.get("JobState", "")
        if state in WAITING:
            reason = facts.get("Reason", "None")
            return JobStatus("waiting", why="in the queue" if reason == "None" else f"in the queue: {reason}")
        if state in RUNNING:
            return JobStatus("running")
        ended = _ended(submitted.folder / ENDED, patient=state in ("COMPLETED", "FAILED"))
        if ended is not None:
            return ended
        where = f"Slurm job {submitted.id}"
        if state in CUT_OFF:
            found, exit_status, what, fix = CUT_OFF[state]
            return JobStatus(found, exit_status, f"{what}\n  where: {where}\n  fix:   {fix}")
        said = f"Slurm says {state}, ExitCode={facts.get('ExitCode')}" if state else "Slurm has forgotten it"
        why = (
            f"it ended without a word; {said}\n  where: {where}\n  fix:   velocity logs {submitted.name} shows the end"
        )
        return JobStatus("failed", 1, why)

    def logs(self, submitted: Submitted, *, follow: bool) -> Iterator[str]:
        """The lines of all its attempts so far, with `follow` until it is over."""
        log, said, over = _Log(submitted.folder / LOG), "", not follow
        while not over:
            now = self._asked(submitted)
            if now.why and now.why != said and not now.over:
                say(f"{submitted.name}: {now.why}")
            said, over = now.why, now.over
            deadline = time.monotonic() + ASK_SECONDS
            while not over and time.monotonic() < deadline:
                yield from log.lines()
                time.sleep(LOOK_SECONDS)
        yield from log.lines()
        yield from log.rest()

    def _asked(self, submitted: Submitted) -> JobStatus:
        """Its status; unknown while Slurm does not answer, as where its controller is started anew."""
        try:
            return self.status(submitted)
        except JobError as error:
            return JobStatus("unknown", why=str(error).splitlines()[0])

    def cancel(self, submitted: Submitted) -> None:
        """It leaves the queue; or, where it runs, its script has the nodes save and stop."""
        for command in (("--state=PENDING",), ("--state=RUNNING", "--batch", "--signal=TERM")):
            done = ask("scancel", *command, submitted.id)
            if done.returncode and not is_gone(done.stderr):
                raise JobError(f"scancel: {short(done.stderr)}", f"Slurm job {submitted.id}")


@dataclass
class _Log:
    """A file that grows; its whole lines, each once."""

    path: Path
    at: int = 0
    begun: bytes = b""

    def lines(self) -> Iterator[str]:
        """Those that are new."""
        if self.path.exists():
            with self.path.open("rb") as stream:  # anew each time: a shared disk shows then what others have written
                stream.seek(self.at)
                new = stream.read()
            self.at += len(new)
            *whole, self.begun = (self.begun + new).split(b"\n")
            yield from (line.decode("utf-8", "replace") for line in whole)

    def rest(self) -> Iterator[str]:
        """The last one, where it has no end."""
        if self.begun:
            yield self.begun.decode("utf-8", "replace")


def _ended(file: Path, *, patient: bool) -> JobStatus | None:
    """As the job's script has written; None where it was not given the time to."""
    deadline = time.monotonic() + (SHARED_SECONDS if patient else 0)
    while file.name not in {one.name for one in file.parent.iterdir()}:
        if time.monotonic() >= deadline:
            return None
        time.sleep(LOOK_SECONDS)
    said = json.loads(file.read_text(encoding="utf-8"))
    return JobStatus(state_of(said["exit_status"]), said["exit_status"], said["why"])
