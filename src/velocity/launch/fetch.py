"""A run comes back from its mirror: every file as it was proven there. It knows no target."""

from __future__ import annotations

from collections.abc import Callable

from velocity.checkpoints.results import JOB, fetch, fetch_all, names_of
from velocity.checkpoints.store import Store, open_store
from velocity.config.load import read_resolved
from velocity.config.resolved import differences, is_resolved
from velocity.errors import UserError
from velocity.files import make_private
from velocity.runs.folder import RunFolder


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
        fetch_all(store, names, run.path)
    say(f"{len(names)} file(s) of {url} → {run.path}{'' if whole else '; its result is not there yet'}")
    return len(names)


def _admit(store: Store, run: RunFolder) -> None:
    """Nothing, or UserError where the folder holds something else than this run."""
    if is_resolved(run.job):
        theirs = run.path / f".{JOB}.fetched"
        fetch(store, JOB, theirs)
        try:
            apart = differences(read_resolved(run.job), read_resolved(theirs))
        finally:
            theirs.unlink(missing_ok=True)
        if apart:
            raise UserError(f"the folder holds another run: {apart[0]}", str(run.path), "move it aside")
    elif any(not path.name.startswith(".") for path in run.path.iterdir()):
        raise UserError("the folder holds something else than a run", str(run.path), "move it aside")
