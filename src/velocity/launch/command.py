"""Jobs are sent to a target, followed, listed and cancelled: what the command line's verbs do. It knows no target."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from velocity.config.job import LoadedJob
from velocity.errors import InterruptedRun, JobError, UserError, VelocityError
from velocity.launch import submitted as registry
from velocity.launch.build import build_launcher
from velocity.launch.launcher import JobStatus, Submission, Submitted
from velocity.runs.folder import RunFolder
from velocity.terminal import say


def make_submission(
    loaded_jobs: Sequence[LoadedJob[Any]], overrides: Sequence[str], *, fresh: bool = False
) -> Submission:
    """The jobs of one call; UserError where they ask for more than one kind of launch."""
    first, *others = loaded_jobs
    for other in others:
        if other.job.launch != first.job.launch:
            what = f"{other.path} and {first.path} differ in their launch section, and run in one place"
            raise UserError(what, f"{other.path} launch", "give both the same, or submit them one by one")
    name = registry.new_name(loaded_jobs[-1].job)
    files = {
        f"{number}-{one.path.name}": one.path.read_text(encoding="utf-8") for number, one in enumerate(loaded_jobs, 1)
    }
    return Submission(name, registry.folder_of(name), [one.job for one in loaded_jobs], files, tuple(overrides), fresh)


def rendered(submission: Submission) -> Mapping[str, str]:
    """All that would be sent."""
    return {**submission.files, **build_launcher(submission.launch.kind).render(submission)}


def submit(submission: Submission) -> Submitted:
    """The jobs were sent, and are found again by the submission's name."""
    launcher = build_launcher(submission.launch.kind)
    launcher.check(submission)
    registry.write_files(submission.folder, {**submission.files, **launcher.render(submission)})
    mirrors = tuple(job.checkpoint.mirror for job in submission.jobs)
    sent = launcher.submit(submission)
    sent = sent if sent.mirrors else replace(sent, mirrors=mirrors)
    registry.record(sent)
    say(f"submitted {sent.name} to {sent.kind}: {sent.id}")
    return sent


def status(submitted: Submitted) -> JobStatus:
    """Where it is; what is over is asked for once."""
    kept = registry.kept_status(submitted)
    if kept is not None:
        return kept
    found = build_launcher(submitted.kind).status(submitted)
    if found.over:
        registry.keep_status(submitted, found)
    return found


def follow(submitted: Submitted, write: Callable[[str], None]) -> JobStatus:
    """Its lines are written until it is over; how it ended."""
    for line in build_launcher(submitted.kind).logs(submitted, follow=True):
        write(line)
    return status(submitted)


def conclude(submitted: Submitted, ended: JobStatus) -> None:
    """Nothing where the job is complete; else the error that says why not, with the job's exit status."""
    if ended.state == "complete":
        say(f"done: {submitted.name}")
        return
    why = ended.why or f"{submitted.name} is {ended.state}"
    again = "run the same command to go on"
    where = "" if "where:" in why or "fix:" in why else submitted.name  # all three lines are there already
    if ended.state in ("interrupted", "cancelled"):
        raise InterruptedRun(why, where, "" if "fix:" in why else again)
    error: VelocityError = JobError(why, where)
    if ended.exit_status:
        error.exit_status = ended.exit_status
    raise error


def cancel(name: str) -> Submitted:
    """The job was asked to stop."""
    submitted = registry.find(name)
    build_launcher(submitted.kind).cancel(submitted)
    return submitted


def fetch(name: str) -> None:
    """The runs of a submitted job lie in their output folders here, as far as their mirrors have them."""
    from velocity.launch.fetch import fetch_run

    submitted = registry.find(name)
    for output, mirror in zip(submitted.outputs, submitted.mirrors, strict=True):
        if mirror is None:
            fix = f"copy {output} from there, or give the job a checkpoint.mirror"
            raise UserError(f"the run lies on the machines that {submitted.name} ran on", "checkpoint.mirror", fix)
        fetch_run(mirror, output, say)


def listed() -> list[dict[str, Any]]:
    """What was submitted from here, oldest first; one whose target does not answer is `unknown`, and says why."""
    rows = []
    for one in registry.all_submitted():
        try:
            now = status(one)
        except VelocityError as error:
            now = JobStatus("unknown", why=str(error).splitlines()[0])
        rows.append({
            "name": one.name, "target": one.kind, "id": one.id, "state": now.state, "exit_status": now.exit_status,
            "submitted": one.time, "outputs": list(one.outputs), "why": now.why,
        })  # fmt: skip
    return rows


def print_listed(rows: Sequence[Mapping[str, Any]]) -> None:
    """A table of what was submitted from here."""
    from rich.console import Console
    from rich.table import Table

    if not rows:
        say("nothing was submitted from this folder")
        return
    table = Table("name", "target", "state", "since", "id", box=None, header_style="bold")
    for row in rows:
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["submitted"]))
        table.add_row(row["name"], row["target"], row["state"], since, row["id"])
    Console().print(table)
    for row in rows:
        if row["state"] == "unknown" and row["why"]:
            say(f"{row['name']}: {row['why']}")


def print_lines(submitted: Submitted) -> None:
    """Its lines so far, on standard output."""
    for line in build_launcher(submitted.kind).logs(submitted, follow=False):
        print(line)


def move_aside(loaded_jobs: Sequence[LoadedJob[Any]]) -> None:
    """The jobs' old runs lie beside their output folders, where nobody writes them: what is sent begins anew."""
    for loaded in loaded_jobs:
        run = RunFolder(loaded.job.output)
        if run.path.exists():
            with run.owned():
                run.move_aside()


def detached(submitted: Submitted) -> str:
    """How to come back to a job that goes on by itself."""
    return (
        f"{submitted.name} goes on; velocity logs {submitted.name} follows it, velocity cancel {submitted.name} ends it"
    )
