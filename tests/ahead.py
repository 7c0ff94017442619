"""Pieces of work that mostly start processes, or wait for them, are done two at a time before the tests that look."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Result = TypeVar("Result")


@contextmanager
def done_ahead(work: Mapping[str, Callable[[], Result]], at_once: int = 2) -> Iterator[Callable[[str], Result]]:
    """What a piece of work by its name returned, or raised; all are begun in their order, so many at a time."""
    starter = ThreadPoolExecutor(at_once)
    started = {name: starter.submit(piece) for name, piece in work.items()}
    try:
        yield lambda name: started[name].result()
    finally:
        starter.shutdown(cancel_futures=True)  # nobody asks for them: a single test was chosen, or one has failed
