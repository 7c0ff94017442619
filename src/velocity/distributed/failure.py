"""Why a rank failed, as a file a rank: it writes its own or, where a signal killed it, its node does. It knows no run.

The others fail as well, blaming a connection that was closed: the first to say why has the cause.
"""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

from velocity.files import write_atomically


def host() -> str:
    """This machine's name, for messages."""
    return socket.gethostname()


def record(  # noqa: PLR0913 - what is said of a failure
    folder: Path, rank: int, what: str, *, exit_status: int = 1, trace: str = "", killed: bool = False, kind: str = ""
) -> None:
    """The rank's failure lies in the folder; `killed` where it could not say itself what happened."""
    facts = {"time": time.time(), "rank": rank, "host": host(), "killed": killed, "kind": kind, "what": what}
    text = json.dumps({**facts, "exit_status": exit_status, "trace": trace}, indent=1)
    write_atomically(folder / f"rank-{rank:04}.json", text)


def cause(folder: Path) -> dict[str, Any] | None:
    """The failure that led to the others; None where no rank could say one.

    That of a killed rank comes first, although its node sees it last; else the earliest.
    """
    found = [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("rank-*.json")]
    return min(found, key=lambda failure: (not failure["killed"], failure["time"]), default=None)


def forget(folder: Path) -> None:
    """A new attempt begins."""
    for file in folder.glob("rank-*.json"):
        file.unlink()
