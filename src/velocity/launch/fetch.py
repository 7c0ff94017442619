"""A run comes back from its mirror: every file as it was proven there. It knows no target."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from velocity.checkpoints.commit import Entry
from velocity.checkpoints.mirror import RESULT, RESULTS
from velocity.checkpoints.store import PROOFS, Altered, Store, open_store
from velocity.config.load import read_resolved
from velocity.config.resolved import differences, is_resolved
from velocity.errors import JobError, UserError
from velocity.files import make_private
from velocity.runs.folder import RunFolder

RUN = "run"
JOB, STATUS = "job.yaml", "status.json"
TRIES, PAUSE_SECONDS = 3, 1.0  # of a file that the job still writes


def fetch_run(url: str, output: str, say: Callable[[str], None]) -> int:
    """The local run folder holds what the mirror has of the run; the number of its files.

    UserError where the folder holds another run, or the mirror none.
    """
    store, run = open_store(url), RunFolder(output)
    names, whole = names_of(store)
    if JOB not in names:
        raise UserError(f"there is nothing of a run at {url}", output, "it has not begun to send; try again later")
    with run.owned():
        make_private(run.path)
        _admit(store, run)
        # the job first, so that what is cut off is known for what it is; its state last
        for name in sorted(names, key=lambda one: (one != JOB, one == STATUS, one)):
            _fetch(store, name, run.path / name)
    say(f"{len(names)} file(s) of {url} → {run.path}{'' if whole else '; its result is not there yet'}")
    return len(names)


def names_of(store: Store) -> tuple[list[str], bool]:
    """What of a run the mirror has, proven, and whether that is all of a complete run.

    Of a result nothing counts before all of it is there. UserError for a name that leads out of the folder.
    """
    listed = store.read(RESULT)
    result = set(json.loads(listed)) if listed else set()
    proven = _proven(store)
    names = [name for name in proven if name in result or PurePosixPath(name).parts[0] not in RESULTS]
    if lost := sorted(result - set(proven)):
        raise JobError(f"the mirror has lost {lost[0]}", store.url, "run the job again: what is left of it goes on")
    for name in names:
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise UserError(f"{name} would lie outside of the run", store.url, "the mirror is not one of ours")
    return names, bool(result)


def _proven(store: Store) -> list[str]:
    store.system.invalidate_cache()
    root = f"{store.root}/{PROOFS}/{RUN}/"
    try:
        paths = store.system.find(root.rstrip("/"))
    except FileNotFoundError:
        return []
    return sorted(str(path).removeprefix(root).removesuffix(".json") for path in paths)


def _admit(store: Store, run: RunFolder) -> None:
    """Nothing, or UserError where the folder holds something else than this run."""
    if is_resolved(run.job):
        theirs = run.path / f".{JOB}.fetched"
        _fetch(store, JOB, theirs)
        try:
            apart = differences(read_resolved(run.job), read_resolved(theirs))
        finally:
            theirs.unlink(missing_ok=True)
        if apart:
            raise UserError(f"the folder holds another run: {apart[0]}", str(run.path), "move it aside")
    elif any(not path.name.startswith(".") for path in run.path.iterdir()):
        raise UserError("the folder holds something else than a run", str(run.path), "move it aside")


def _fetch(store: Store, name: str, file: Path) -> None:
    for left in reversed(range(TRIES)):
        proof = store.read(f"{PROOFS}/{RUN}/{name}.json")
        try:
            said = json.loads(proof or b"{}")
            store.fetch(f"{RUN}/{name}", file, Entry(said["size"], said["sha256"]))
            return
        except (Altered, KeyError, ValueError) as error:
            if not left:
                what = f"{name} does not come as it was sent: {error}"
                raise JobError(what, store.url, "does the job still write? try again") from None
            time.sleep(PAUSE_SECONDS)
