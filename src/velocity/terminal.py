"""What goes to standard error: lines, and one that changes while something lasts. No secret goes there."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO, cast

from velocity.secrets import scrub

CLEAR = "\r\033[K"  # what a changing line of a terminal is overwritten with
LINE_SECONDS = 10.0


class _Scrubbed:
    """A stream that whatever is written to passes through, without secrets."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(scrub(text))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def keep_secrets() -> None:
    """What this process prints from now on holds no secret, whoever prints it: we, a library, or a traceback."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, _Scrubbed):
            scrubbed = cast(TextIO, _Scrubbed(stream))
            setattr(sys, name, scrubbed)
            for handler in _handlers():
                if handler.stream is stream:  # of a library that was imported before
                    handler.setStream(scrubbed)


def _handlers() -> list[logging.StreamHandler[TextIO]]:
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    found = (handler for logger in loggers if isinstance(logger, logging.Logger) for handler in logger.handlers)
    return [handler for handler in found if isinstance(handler, logging.StreamHandler)]


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
