"""What a process owes the one that started it. It knows no other module."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Mapping

PR_SET_PDEATHSIG = 1
PARENT = "VELOCITY_PARENT"


def as_parent() -> Mapping[str, str]:
    """What the environment of a process that we start says of us."""
    return {PARENT: str(os.getpid())}


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
