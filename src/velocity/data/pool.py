"""Work on pieces of data in several processes, with results in order and flat memory. It knows no kind of work."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from velocity.errors import JobError
from velocity.process import die_with_parent, ignore_stops

Item = TypeVar("Item")
Made = TypeVar("Made")


class _Work:
    """What the processes do; it is inherited by the fork, so nothing is loaded or sent twice."""

    current: Callable[[Any], Any]


def _start() -> None:
    die_with_parent()  # it holds the parent's locks, too
    ignore_stops()  # they are the parent's to answer, whether or not all of its processes hear of them


def _do(item: Any) -> Any:
    return _Work.current(item)


def in_order(
    work: Callable[[Item], Made], items: Iterable[Item], processes: int | None, *, killed: str, where: str
) -> Iterator[Made]:
    """What `work` makes of each item, in order, by a pool that is never more than a few items ahead: memory stays flat.

    A process a core where `processes` is None. `killed` and `where` tell of a process that was killed.
    """
    _Work.current = work
    processes = processes or len(os.sched_getaffinity(0))
    pending: deque[Future[Made]] = deque()
    others = multiprocessing.active_children()
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("fork"), initializer=_start)
    try:
        for item in items:
            pending.append(pool.submit(_do, item))
            if len(pending) > 2 * processes:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        fix = "was memory short? set data.processes lower"
        raise JobError(killed, where, fix) from None
    finally:
        with contextlib.suppress(RuntimeError):  # stopped while it starts its thread, it has none to join
            pool.shutdown(wait=True, cancel_futures=True)
        for process in multiprocessing.active_children():
            if process not in others:  # and none that tells its processes to leave: this one would wait for ever
                process.kill()
                process.join()
