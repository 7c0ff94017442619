"""Why a rank failed, as a file a rank: it writes its own or, where it cannot, its node does. It knows no run.

The others fail as well, blaming a connection that was closed. Those are marked as peers: they followed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from velocity.distributed import pulse
from velocity.files import write_atomically

FILES = ("rank-*.json", "doing-*.json", "stack-*.txt")
# What gloo, NCCL and the store say where the other end has gone, or does not come.
GONE = (
    "connection closed by peer", "connection reset by peer", "socket closed", "broken pipe", "remote process exited",
    "ncclremoteerror", "connection was likely closed", "failed to recv, got 0 bytes", "timed out waiting",
    "connection refused", "collective operation timeout", "communicator was aborted", "wait timeout",
)  # fmt: skip


@dataclass(frozen=True)
class Failure:
    """What is said of a failure.

    `killed` where a signal ended the rank, `hung` where it made no progress, `peer` where it followed another one.
    """

    what: str
    exit_status: int = 1
    errno: int | None = None
    kind: str = ""
    trace: str = field(default="", repr=False)
    killed: bool = False
    hung: bool = False
    peer: bool = False


def is_peers(error: BaseException) -> bool:
    """True for what a rank's connections raise where the other end has gone: the cause is there, not here."""
    if isinstance(error, OSError) or not isinstance(error, RuntimeError):  # an object store resets connections, too
        return False
    said = str(error).lower()
    return any(words in said for words in GONE)


def record(folder: Path, rank: int, what: Failure, doing: Mapping[str, Any] | None = None) -> None:
    """The rank's failure lies in the folder, with what it was `doing`; left out: what this process is doing."""
    at = pulse.doing().facts() | {"records": pulse.doing().records} if doing is None else doing
    place = {"step": at.get("step"), "doing": at.get("what"), "records": list(at.get("records", ()))}
    put(folder, {"time": time.time(), "rank": rank, "host": at.get("host") or pulse.host(), **asdict(what), **place})


def put(folder: Path, facts: Mapping[str, Any]) -> None:
    """A failure that was found in another node's folder lies in this one, too."""
    write_atomically(folder / f"rank-{facts['rank']:04}.json", json.dumps(facts, indent=1))


def found(folder: Path) -> list[dict[str, Any]]:
    """All that ranks said, the one that led to the others first.

    Peers come last. A killed rank comes before others, although its node sees it last; then a hung one; then the
    earliest.
    """
    said = [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("rank-*.json")]
    return sorted(said, key=lambda one: (one["peer"], not one["killed"], not one["hung"], one["time"]))


def cause(folder: Path) -> dict[str, Any] | None:
    """The failure that led to the others; None where no rank could say one."""
    return next(iter(found(folder)), None)


def followed(folder: Path) -> str:
    """Which ranks failed beside the cause, a line each."""
    others = [(one, one["what"].splitlines()[0]) for one in found(folder)[1:]]
    return "\n".join(
        f"rank {one['rank']} on {one['host']} {'followed' if one['peer'] else 'failed, too'}: {what}"
        for one, what in others
    )


def forget(folder: Path) -> None:
    """A new attempt begins."""
    for file in _files(folder):
        file.unlink(missing_ok=True)


def set_aside(folder: Path, name: str) -> None:
    """The files of an attempt lie in a folder of that name inside, out of the next one's way."""
    aside = folder / name
    aside.mkdir(parents=True, exist_ok=True)
    for file in _files(folder):
        os.replace(file, aside / file.name)


def _files(folder: Path) -> list[Path]:
    return [file for pattern in FILES for file in folder.glob(pattern)]
