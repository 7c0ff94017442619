"""The shards that a group of ranks takes one after the other: nobody idles while another has work.

What is taken is decided by one counter that all ranks share, never by a rank's number.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from velocity.distributed.comm import Ranks, Tally
from velocity.errors import InterruptedRun
from velocity.inference.engine import Engine
from velocity.inference.ledger import Ledger
from velocity.inference.progress import Progress


class OfRow(Protocol):
    """What is asked of a row."""

    @property
    def row(self) -> int:
        """The row's number."""
        ...

    @property
    def sample(self) -> int:
        """Which one it is of several that are asked of the row; the first one counts as the row."""
        ...


Asked = TypeVar("Asked", bound=OfRow)
Done = TypeVar("Done")


class Work(Generic[Asked, Done]):
    """A queue of requests that refills itself, and the shards that are being completed."""

    def __init__(
        self,
        ledger: Ledger,
        claim: Callable[[], int | None],
        requests_of: Callable[[int], Sequence[Asked]],
        describe: Callable[[Asked, Done], Mapping[str, Any]],
        *,
        writes: bool,
    ) -> None:
        """`claim` gives the next shard that is ours, `requests_of` what a row asks for, `describe` a line of it.

        Only the rank that `writes` puts shards down; the others of its group come to the same.
        """
        self.ledger, self.claim, self.requests_of, self.describe, self.writes = (
            ledger, claim, requests_of, describe, writes,
        )  # fmt: skip
        self._pending: deque[Asked] = deque()
        self._exhausted = False
        self._shard_of: dict[int, int] = {}
        self._open: dict[int, list[dict[str, Any]]] = {}
        self._missing: dict[int, int] = {}

    def peek(self) -> Asked | None:
        """The next request, which stays; a shard more is taken where there is none."""
        while not self._pending and not self._exhausted:
            shard = self.claim()
            if shard is None:
                self._exhausted = True
            else:
                self._take(shard)
        return self._pending[0] if self._pending else None

    def pop(self) -> Asked:
        """The next request, which is ours from now on."""
        return self._pending.popleft()

    @property
    def unfinished(self) -> bool:
        """True while a shard that we took is not written."""
        return bool(self._missing)

    def done(self, request: Asked, completion: Done) -> None:
        """The completion is kept; where it is the last one of its shard, that is written."""
        shard = self._shard_of[request.row]
        self._open[shard].append(dict(self.describe(request, completion)))
        self._missing[shard] -= 1
        if self._missing[shard]:
            return
        lines = sorted(self._open.pop(shard), key=lambda line: (line["row"], line.get("sample", 0)))
        del self._missing[shard]
        for line in lines:
            self._shard_of.pop(line["row"], None)
        if self.writes:
            self.ledger.write(shard, lines)

    def _take(self, shard: int) -> None:
        rows = [int(row) for row in self.ledger.shards[shard]]
        requests = [request for row in rows for request in self.requests_of(row)]
        self._pending.extend(requests)
        self._shard_of.update(dict.fromkeys(rows, shard))
        self._open[shard], self._missing[shard] = [], len(requests)


def claims(engine: Engine, tally: Tally, todo: Sequence[int]) -> Callable[[], int | None]:
    """The next shard that no group has taken yet, the same on all ranks of ours."""

    def claim() -> int | None:
        place = engine.agree(tally.add("taken") - 1 if engine.leads else None)
        return todo[place] if place < len(todo) else None

    return claim


def finish_all(work: Work[Asked, Done], found: Iterable[tuple[Asked, Done]], progress: Progress, ranks: Ranks) -> None:
    """Every shard that was to do is done, by us or by others; InterruptedRun where we are asked to stop."""
    try:
        for asked, done in found:
            progress.row(asked.sample == 0)
            work.done(asked, done)
        if work.unfinished or not progress.leave(ranks):
            raise InterruptedRun("stopped; finished rows are kept", fix="run the same command to go on")
    finally:
        progress.close()
