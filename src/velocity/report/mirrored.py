"""What the mirror of a run tells of it, brought here: its records, never its model. It knows no page."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from velocity.checkpoints.mirror import RECORDS
from velocity.checkpoints.results import JOB, RUN, fetch, names_of
from velocity.checkpoints.store import open_store, scheme_of
from velocity.errors import JobError, UserError, VelocityError
from velocity.files import make_private

TOLD = {*RECORDS, "evaluation.json", "rows"}  # of a run, that a page is made of


def is_mirror(address: str) -> bool:
    """True for an address of a store, and for a folder that a run is mirrored to."""
    return bool(scheme_of(address)) or (Path(address).expanduser() / RUN / JOB).is_file()


def fetch_records(address: str, folder: Path) -> None:
    """The folder holds the run's records as they lie at the mirror; what has not changed is not sent again.

    UserError where there is none; JobError where the mirror does not answer.
    """
    try:
        store = open_store(address)
        names, _ = names_of(store)
        if JOB not in names:
            raise UserError("there is nothing of a run", address, "give its checkpoint.mirror, or try again later")
        make_private(folder)
        for name in names:
            if PurePosixPath(name).parts[0] in TOLD:
                fetch(store, name, folder / name)
    except (VelocityError, OSError):
        raise
    except Exception as error:  # every store has errors of its own
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise JobError(f"the mirror does not answer: {why}", address, "try again") from None
