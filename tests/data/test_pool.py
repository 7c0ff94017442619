"""Work in several processes: results in order, a process that is killed said, none left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator

import pytest

from velocity.data.pool import in_order
from velocity.errors import JobError


def test_results_come_in_the_order_of_the_items_whoever_is_done_first():
    def work(number: int) -> int:
        time.sleep(0.02 * (number % 3 == 0))
        return number * number

    assert list(in_order(work, range(20), 3, killed="a process was killed", where="here")) == [n * n for n in range(20)]


def test_items_are_taken_only_a_few_ahead_of_the_results():
    taken = []

    def items() -> Iterator[int]:
        for number in range(50):
            taken.append(number)
            yield number

    results = in_order(lambda number: number, items(), 2, killed="a process was killed", where="here")
    assert next(results) == 0
    assert len(taken) == 5, "two processes, four waiting and the one that is given"
    results.close()  # type: ignore[attr-defined]


def test_a_process_that_is_killed_is_said_with_its_name_and_place():
    def work(number: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(JobError) as caught:
        list(in_order(work, range(3), 2, killed="an auditing process was killed", where="a.jsonl"))
    assert str(caught.value).splitlines() == [
        "an auditing process was killed",
        "  where: a.jsonl",
        "  fix:   was memory short? set data.processes lower",
    ]


def test_no_process_is_left_when_an_item_fails_or_the_reader_stops():
    def work(number: int) -> int:
        return 1 // number

    others = set(multiprocessing.active_children())  # ranks of the session's pool
    with pytest.raises(ZeroDivisionError):
        list(in_order(work, range(3), 2, killed="a process was killed", where="here"))
    results = in_order(lambda number: number, range(100), 2, killed="a process was killed", where="here")
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert set(multiprocessing.active_children()) <= others
