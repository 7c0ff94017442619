"""What goes to standard error: lines, and one that changes while something lasts. It knows no other module."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

CLEAR = "\r\033[K"  # what a changing line of a terminal is overwritten with
LINE_SECONDS = 10.0


def say(text: str) -> None:
    """Print a line, in place of the changing one."""
    print(f"{CLEAR if sys.stderr.isatty() else ''}{text}", file=sys.stderr, flush=True)


def progress_line() -> Callable[[str], None]:
    """Return what prints one changing line on a terminal, and a line now and then into a log."""
    if sys.stderr.isatty():
        return lambda text: print(f"{CLEAR}{text}", end="", file=sys.stderr, flush=True)
    said = time.monotonic()

    def report(text: str) -> None:
        nonlocal said
        if time.monotonic() - said >= LINE_SECONDS:
            said = time.monotonic()
            say(text)

    return report
