"""What was submitted from this folder: a folder each under .velocity/jobs, found again by any later command."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from velocity.config.job import Job
from velocity.errors import UserError
from velocity.files import make_private, whole_file
from velocity.launch.launcher import JobStatus, Submitted

JOBS = Path(".velocity", "jobs")
RECORD, LAST = "submitted.json", "status.json"
NAME_LETTERS = 24  # of the output's name: with the time behind it, a name is allowed wherever names are


def new_name(job: Job) -> str:
    """A name that no earlier submission has: of the job's output, and the time."""
    words = re.sub(r"[^a-z0-9]+", "-", Path(job.output).name.lower()).strip("-")[:NAME_LETTERS].strip("-")
    words = words if words[:1].isalpha() else f"job-{words}".rstrip("-")
    while True:
        name = f"{words}-{time.strftime('%m%d-%H%M%S')}"
        if not folder_of(name).exists():
            return name
        time.sleep(0.2)


def folder_of(name: str) -> Path:
    """Where the submission of that name lies."""
    return (JOBS / name).absolute()


def write_files(folder: Path, files: dict[str, str]) -> None:
    """The texts lie in the new folder; it is closed to others."""
    make_private(folder)
    for name, text in files.items():
        with whole_file(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def record(submitted: Submitted) -> None:
    """The submission is found by later commands."""
    facts = {**asdict(submitted), "folder": str(submitted.folder)}
    write_files(submitted.folder, {RECORD: json.dumps(facts, indent=1) + "\n"})


def all_submitted() -> list[Submitted]:
    """What was submitted from this folder, oldest first."""
    found = [_read(file) for file in JOBS.glob(f"*/{RECORD}")]
    return sorted(found, key=lambda one: one.time)


def find(name: str) -> Submitted:
    """The submission of that name, or the newest whose name begins so; UserError where there is none."""
    known = all_submitted()
    exact = [one for one in known if name in (one.name, one.id)]
    matching = exact or [one for one in known if one.name.startswith(name)]
    if not matching:
        names = ", ".join(one.name for one in known[-3:])
        fix = f"one of: {names}" if names else "nothing was submitted from this folder; go to where it was"
        raise UserError(f"no job named {name} was submitted from here", str(JOBS), fix)
    return matching[-1]


def keep_status(submitted: Submitted, status: JobStatus) -> None:
    """The status of a job that is over is known for good, however soon its target forgets it."""
    write_files(submitted.folder, {LAST: json.dumps(asdict(status), indent=1) + "\n"})


def kept_status(submitted: Submitted) -> JobStatus | None:
    """How it ended; None where that was not seen yet."""
    file = submitted.folder / LAST
    return JobStatus(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def _read(file: Path) -> Submitted:
    facts: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    outputs: Sequence[str] = tuple(facts["outputs"])
    mirrors = tuple(facts["mirrors"])
    return replace(Submitted(**facts), folder=Path(facts["folder"]), outputs=outputs, mirrors=mirrors)
