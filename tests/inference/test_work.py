"""Shards that are taken one after the other: the queue refills itself, and a shard is written with its last row."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from velocity.inference.ledger import Ledger
from velocity.inference.request import Completion, Request
from velocity.inference.work import Work

ROWS = 40  # of decreasing lengths: shards of 16, 16 and 8, in the order of the rows


def ledger_of(folder: Path) -> Ledger:
    return Ledger(folder, list(range(ROWS, 0, -1)))


def claims(shards: Iterable[int]) -> Callable[[], int | None]:
    waiting = iter(shards)
    return lambda: next(waiting, None)


def work_on(folder: Path, shards: Iterable[int], samples: int = 1, *, writes: bool = True) -> Work:
    def requests_of(row: int) -> list[Request]:
        return [Request(row, sample, [row]) for sample in range(samples)]

    def describe(request: Request, completion: Completion) -> dict[str, Any]:
        return {"row": request.row, "sample": request.sample, "completion": completion.finish}

    return Work(ledger_of(folder), claims(shards), requests_of, describe, writes=writes)


def take(work: Work, count: int) -> list[Request]:
    taken: list[Request] = []
    while len(taken) < count and work.peek() is not None:
        taken.append(work.pop())
    return taken


def test_a_look_takes_a_shard_only_where_none_is_left_and_does_not_take_the_request(tmp_path: Path):
    asked: list[int] = []

    def claim() -> int | None:
        asked.append(len(asked))
        return asked[-1] if len(asked) <= 3 else None

    work: Work[Request, Completion] = Work(
        ledger_of(tmp_path), claim, lambda row: [Request(row, 0, [row])], lambda r, c: {}, writes=True
    )
    first = work.peek()
    assert first is not None and first is work.peek() and asked == [0]
    rows = [request.row for request in take(work, 99)]
    assert rows == list(range(ROWS))
    assert work.peek() is None and work.peek() is None
    assert asked == [0, 1, 2, 3], "and once nothing is left nobody is asked again"


def test_a_shard_is_written_with_its_last_row_in_the_rows_order_whatever_order_they_end_in(tmp_path: Path):
    work = work_on(tmp_path, [2, 0], samples=2)
    requests = take(work, 99)
    assert [request.row for request in requests] == [row for row in [*range(32, 40), *range(16)] for _ in range(2)]
    late, others = requests[3], [*requests[:3], *requests[4:]][::-1]
    for request in others:
        work.done(request, Completion())
    assert work.unfinished
    assert work.ledger.unfinished() == [1, 2]
    work.done(late, Completion())
    assert not work.unfinished
    assert work.ledger.unfinished() == [1]
    lines = list(work.ledger.lines(2))
    assert [(line["row"], line["sample"]) for line in lines] == [(row, i) for row in range(32, 40) for i in range(2)]


def test_a_shard_that_was_taken_and_not_written_is_unfinished(tmp_path: Path):
    work = work_on(tmp_path, [1])
    assert not work.unfinished
    work.peek()
    assert work.unfinished
    for request in take(work, 15):
        work.done(request, Completion())
    assert work.unfinished
    assert work.ledger.unfinished() == [0, 1, 2]


def test_a_failed_row_is_counted_in_its_shard(tmp_path: Path):
    work: Work[Request, Completion] = Work(
        ledger_of(tmp_path), claims([2]), lambda row: [Request(row, 0, [row])],
        lambda request, done: {"row": request.row, **({"error": done.error} if done.error else {})}, writes=True,
    )  # fmt: skip
    for request in take(work, 8):
        work.done(request, Completion(finish="error", error="no") if request.row == 35 else Completion())
    assert work.ledger.state(2) == {"shard": 2, "lines": 8, "failed": 1}


def test_a_rank_that_does_not_write_comes_to_the_same_and_leaves_no_file(tmp_path: Path):
    work = work_on(tmp_path, [0, 2], writes=False)
    for request in take(work, 99):
        work.done(request, Completion())
    assert not work.unfinished
    assert list(tmp_path.iterdir()) == []
