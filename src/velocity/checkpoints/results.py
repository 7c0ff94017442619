"""What of a run lies at its mirror, beside checkpoints: records and result, each file as it was proven there."""

from __future__ import annotations

import json
import time
from pathlib import Path, PurePosixPath

from velocity.checkpoints.commit import Entry
from velocity.checkpoints.mirror import RESULT, RESULTS
from velocity.checkpoints.store import PROOFS, Altered, Store, open_store
from velocity.errors import JobError, UserError, VelocityError
from velocity.files import make_private

RUN = "run"
JOB, STATUS = "job.yaml", "status.json"
TRIES, PAUSE_SECONDS = 3, 1.0  # of a file that the job still writes


def fetch_result(url: str, folder: Path) -> bool:
    """The records and the result of a complete run lie in the folder; False where the mirror has no result yet.

    Errors as of `names_of` and `fetch`; JobError where the mirror does not answer.
    """
    try:
        store = open_store(url)
        names, whole = names_of(store)
        if whole:
            fetch_all(store, names, folder)
    except (VelocityError, OSError):
        raise
    except Exception as error:  # every store has errors of its own
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise JobError(f"the mirror does not answer: {why}", url, "the same command goes on") from None
    return whole


def fetch_all(store: Store, names: list[str], folder: Path) -> None:
    """The files lie in the folder: the job first, so that what is cut off is known for what it is; its state last."""
    make_private(folder)
    for name in sorted(names, key=lambda one: (one != JOB, one == STATUS, one)):
        fetch(store, name, folder / name)


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


def fetch(store: Store, name: str, file: Path) -> None:
    """The file of that name is `file`; JobError where the mirror's is not as it was proven."""
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
