"""A run folder becomes a job's: refused where it is another one's, else told what it is to hold. It knows no task."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from velocity import __version__
from velocity.config.job import Job, LoadedJob
from velocity.config.load import read_resolved
from velocity.config.resolved import differences, is_resolved, render
from velocity.distributed import failure
from velocity.errors import UserError
from velocity.files import make_private, sweep, why_untrusted, write_atomically
from velocity.runs.folder import RunFolder

PACKAGES = ("torch", "deepspeed", "transformers", "datasets", "tokenizers", "safetensors", "pyarrow", "numpy",
            "peft", "bitsandbytes")  # fmt: skip


@dataclass(frozen=True)
class Manifest:
    """What of a job's inputs is written down: their hash, `facts` for environment.json, and the engine's settings.

    `rejected` are files with the records that were left out, `audit` is what was found in the text of the data.
    """

    hash: str
    facts: Mapping[str, Any]
    rejected: Sequence[Path]
    deepspeed: Mapping[str, Any]
    origins: Mapping[str, str] = field(default_factory=dict)  # of each of those settings: a key of the job, or why
    audit: Mapping[str, Any] | None = None


def is_complete(loaded: LoadedJob[Job], inputs: str) -> bool:
    """True where the run folder already holds the result of this very job, from inputs of that hash."""
    run = RunFolder(loaded.job.output)
    status = run.status()
    if status["state"] != "complete" or run.result is None or status.get("inputs") != inputs:
        return False
    old = read_resolved(run.job)
    return not differences(old, loaded.job) and loaded.job.ends_like(old)


def check_startable(loaded: LoadedJob[Job], *, fresh: bool = False) -> None:
    """Nothing, or UserError where the run folder belongs to something else: it is asked before inputs are read."""
    run = RunFolder(loaded.job.output)
    if fresh or not run.path.is_dir():
        return
    if is_resolved(run.job):
        for folder in filter(Path.is_dir, (run.path, run.checkpoints)):
            _refuse_untrusted(folder)
        _refuse(run, differences(read_resolved(run.job), loaded.job))
    elif any(not path.name.startswith(".") for path in run.path.iterdir()):  # hidden: of a claim that was killed
        raise UserError(
            "the output folder is not empty, and no run of Velocity", str(run.path), "choose another output"
        )


def claim(loaded: LoadedJob[Job], manifest: Manifest, hardware: Mapping[str, Any], *, fresh: bool) -> RunFolder:
    """The run folder describes this job; UserError where it belongs to another one and `fresh` is not given.

    The caller holds the folder (`RunFolder.owned`).
    """
    run = RunFolder(loaded.job.output)
    if fresh and run.path.exists():
        run.move_aside()
    check_startable(loaded)
    if is_resolved(run.job) and run.status().get("inputs", manifest.hash) != manifest.hash:
        _refuse(run, ["the content of the model or of the data"])
    make_private(run.path)
    _refuse_untrusted(run.path)
    failure.forget(run.failures)
    for folder in (run.path, run.failures):
        sweep(folder)
    processes = loaded.job.launch.processes
    assert isinstance(processes, int), "the planner resolves launch.processes"
    write_atomically(run.job, render(loaded))
    write_atomically(run.deepspeed, json.dumps(manifest.deepspeed, indent=1) + "\n")
    if manifest.origins:
        write_atomically(run.deepspeed_origins, json.dumps(dict(manifest.origins), indent=1) + "\n")
    write_atomically(run.environment, json.dumps(_environment(manifest, hardware, processes), indent=1) + "\n")
    _collect_rejected(run, manifest.rejected)
    if manifest.audit is None:
        run.audit.unlink(missing_ok=True)
    else:
        write_atomically(run.audit, json.dumps(manifest.audit, indent=1) + "\n")
    run.begin(manifest.hash)
    return run


def _refuse(run: RunFolder, differing: list[str]) -> None:
    """UserError that names what makes the folder another job's; nothing where that list is empty."""
    if differing:
        more = f", and {len(differing) - 3} more" if len(differing) > 3 else ""
        what = f"the output folder belongs to another job; different: {'; '.join(differing[:3])}{more}"
        raise UserError(what, str(run.path), "choose another output, or move the old run aside with --fresh")


def _refuse_untrusted(folder: Path) -> None:
    """UserError where another user may have put the state there that the run would go on from."""
    if why := why_untrusted(folder):
        fix = f"chmod o-w {folder} if it is yours, or choose another output"
        raise UserError(f"the run's state is not to be trusted: {why}", str(folder), fix)


def _environment(manifest: Manifest, hardware: Mapping[str, Any], processes: int) -> dict[str, Any]:
    return {
        "velocity": __version__,
        "versions": {name: _version(name) for name in PACKAGES},
        "hardware": dict(hardware),
        "world_size": processes,
        "git_commit": _git_commit(),
        **manifest.facts,
    }


def _collect_rejected(run: RunFolder, files: Sequence[Path]) -> None:
    """rejected.jsonl of the run: the records of all sources that were left out, with their reason."""
    with run.rejected.open("wb") as out:
        for file in files:
            with file.open("rb") as stream:
                shutil.copyfileobj(stream, out)
    if not run.rejected.stat().st_size:
        run.rejected.unlink()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _git_commit() -> str:
    """Of the working folder, which is where a user keeps job files."""
    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return answer.stdout.strip()
