"""What this rank is doing, as a small file that its node looks at. It knows no run, no objective and no engine.

The file is written at every micro-batch, at the price of microseconds: into the system's memory, and never synced.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, TextIO

from velocity.process import host_name

SHOWN = 3  # records in a message
TOLD = 32  # records in the file
PATIENT_SECONDS = 1800.0  # before the job's own number is read
STACK_SIGNAL = signal.SIGUSR2  # SIGUSR1 is what Slurm asks to stop with


class Place(IntEnum):
    """How far a rank is in a step: of two ranks in the same step the lower one is behind."""

    READS = 0
    AGREES = 1
    LEARNS = 2
    SUMS = 3
    TELLS = 4
    EVALUATES = 5
    SAVES = 6


@dataclass
class Doing:
    """What a rank is doing. `beats` counts what it has done; who is `busy` with one long thing does not beat."""

    rank: int = 0
    pid: int = 0
    host: str = ""
    hang_seconds: float = PATIENT_SECONDS
    step: int | None = None
    place: int = 0
    part: int = 0  # micro-batches begun at this place
    what: str = "starting"
    records: tuple[str, ...] = field(default=(), repr=False)
    busy: bool = True
    waiting: bool = False  # for the other ranks
    beats: int = 0

    def facts(self) -> dict[str, Any]:
        """As JSON has it: the first records, and how many more there are."""
        return {**vars(self), "records": self.records[:TOLD], "more": max(0, len(self.records) - TOLD)}


_doing = Doing()
_file: int | None = None
_stack: TextIO | None = None
_written = 0


def doing() -> Doing:
    """What this rank is doing now."""
    return _doing


def host() -> str:
    """This machine's name, for messages."""
    return host_name()


def doing_file(folder: Path, rank: int) -> Path:
    """Where a rank says what it is doing; gone once it has ended well."""
    return folder / f"doing-{rank:04}.json"


def stack_file(folder: Path, rank: int) -> Path:
    """Where a rank's stack is written, when it is asked for or the rank crashes."""
    return folder / f"stack-{rank:04}.txt"


def begin(folder: Path, rank: int) -> None:
    """From now on the folder says what this rank does, and has its stack when STACK_SIGNAL is sent, wherever it is."""
    global _doing, _file, _stack, _written  # one rank a process
    end()
    folder.mkdir(parents=True, exist_ok=True)
    _stack = stack_file(folder, rank).open("w")
    faulthandler.register(STACK_SIGNAL, file=_stack, all_threads=True)
    faulthandler.enable(file=_stack)
    _doing = Doing(rank=rank, pid=os.getpid(), host=host())
    _file, _written = os.open(doing_file(folder, rank), os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644), 0
    _publish()


def end(folder: Path | None = None, *, well: bool = False) -> None:
    """Nobody looks at this rank any more; where it ended `well` the folder has nothing of it."""
    global _file, _stack
    if _file is not None:
        os.close(_file)
    if _stack is not None:
        faulthandler.unregister(STACK_SIGNAL)
        signal.signal(STACK_SIGNAL, signal.SIG_IGN)  # whoever asks late is not to kill us
        faulthandler.disable()
        _stack.close()
    _file = _stack = None
    if folder is not None and well:
        for file in (doing_file(folder, _doing.rank), stack_file(folder, _doing.rank)):
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # another rank's lie there
            folder.rmdir()


def watched(hang_seconds: float) -> None:
    """After so long without progress of any rank the job is ended."""
    _doing.hang_seconds = hang_seconds
    _publish()


def at(step: int, place: Place, what: str, records: Sequence[str] | None = None) -> None:
    """This rank is at that place of that step; with `records`, working on those."""
    _doing.step, _doing.place, _doing.part, _doing.what, _doing.busy = step, int(place), 0, what, False
    if records is not None:
        _doing.records = tuple(records)
    beat()


def working_on(records: Sequence[str]) -> None:
    """A micro-batch of these records begins."""
    _doing.records, _doing.part, _doing.busy = tuple(records), _doing.part + 1, False
    beat()


def busy(what: str, place: Place | None = None) -> None:
    """One long thing begins, which does not beat: until the next beat, a process that works is taken for alive."""
    _doing.what, _doing.busy = what, True
    _doing.place = _doing.place if place is None else int(place)
    _doing.beats += 1
    _publish()


def at_work(what: str = "completing rows") -> None:
    """Some more of many small things is done, which belong to no step."""
    _doing.what, _doing.busy = what, False
    beat()


def beat() -> None:
    """Something was done."""
    _doing.beats += 1
    _publish()


@contextmanager
def waiting() -> Iterator[None]:
    """Until then this rank only waits for others, and is not the one that hangs."""
    _doing.waiting = True
    _publish()
    try:
        yield
    finally:
        _doing.waiting = False
        _publish()


def _publish() -> None:
    global _written
    if _file is None:
        return
    text = json.dumps(_doing.facts()).encode()
    os.pwrite(_file, text.ljust(_written), 0)  # blanks over what was longer
    _written = max(len(text), _written)


def read(file: Path) -> dict[str, Any] | None:
    """What a rank was doing; None where it does not say, or says something else at this moment."""
    for _ in range(5):
        try:
            facts: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return facts
        except FileNotFoundError:
            return None
        except (OSError, ValueError):  # half old, half new
            time.sleep(0.01)
    return None


def where(facts: Mapping[str, Any]) -> str:
    """`rank 1 on HOST, step 12, records a, b, c (5 more)`, as far as it is known; with no records, what it does."""
    said = f"rank {facts['rank']} on {facts['host']}"
    if facts.get("step") is not None:
        said += f", step {facts['step']}"
    records = list(facts.get("records", ()))
    if records:
        more = len(records) - SHOWN + int(facts.get("more", 0))
        said += f", records {', '.join(records[:SHOWN])}" + (f" ({more} more)" if more > 0 else "")
    elif facts.get("what"):
        said += f", {facts['what']}"
    return said
