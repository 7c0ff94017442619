"""What a process owes the one that started it: to stop when asked, to end with it. It knows no other module."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

PR_SET_PDEATHSIG = 1
PARENT = "VELOCITY_PARENT"
HOST = "VELOCITY_HOST"  # what its target calls this machine
# What asks a process to stop. Slurm sends the last one before the time is up (--signal), to one process or to all.
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
ENDED_SECONDS = 10.0


def as_parent() -> Mapping[str, str]:
    """What the environment of a process that we start says of us."""
    return {PARENT: str(os.getpid())}


def host_name() -> str:
    """This machine's name among a job's, for messages: some clouds' images have another one of their own."""
    return os.environ.get(HOST) or socket.gethostname()


def become_parent() -> None:
    """The processes that we start from now on know us as their parent."""
    os.environ.update(as_parent())


def die_with_parent() -> None:
    """The kernel ends this process when its parent dies, so that none goes on alone (Linux).

    A parent that has died before, while we imported for seconds, ends us now.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.environ.get(PARENT, str(os.getppid())) != str(os.getppid()):
        os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def stops_wait() -> Iterator[None]:
    """What asks us to stop waits until the end of this.

    Threads and processes that are started meanwhile are born so: none dies of it while it imports for seconds.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def hear_stops(told: Callable[[int], None]) -> None:
    """From now on `told` gets the number of each signal that asks us to stop, those that have waited first."""
    for number in STOPS:
        signal.signal(number, lambda received, _: told(received))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)


def ignore_stops() -> None:
    """We are ending anyway: whoever asks us to stop from now on changes nothing, our exit status least of all."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)


def children(parent: int) -> list[int]:
    """Processes that `parent` has started and that have not ended."""
    return [pid for pid, (above, state) in _processes().items() if above == parent and state not in "ZX"]


def end_all(parent: int) -> None:
    """`parent` and all that it started are killed, and gone unless the kernel holds them."""
    left, known = [parent], _processes()
    for above in left:  # the list grows on the way
        left += [pid for pid, (its, _) in known.items() if its == above]
    for pid in left:  # in this order: none is to tell of another's death as of a failure
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + ENDED_SECONDS
    while time.monotonic() < deadline and any(_processes().get(pid, (0, "X"))[1] not in "ZX" for pid in left):
        time.sleep(0.02)


def _processes() -> dict[int, tuple[int, str]]:
    """Each process's parent and state, as Linux says."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended while we looked
            state, above, *_ = (entry / "stat").read_text().rpartition(")")[2].split()
            found[int(entry.name)] = (int(above), state)
    return found
