"""How far a generate job is: a line now and then, for people and in metrics.jsonl. It knows no engine."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from velocity.distributed import pulse
from velocity.distributed.comm import Ranks, Tally
from velocity.distributed.memory import memory_gib

EVERY_SECONDS = 10.0
POLL_SECONDS = 0.2


class Report:
    """Lines about a run, in metrics.jsonl, in log.txt and for a person."""

    def __init__(  # noqa: PLR0913 - where lines go, and what they count
        self, metrics: Path, log: Path, total: int, done: int, say: Callable[[str], None], set_name: str = "",
        behind: int = 0,
    ) -> None:  # fmt: skip
        """`done` of `total` rows were finished before us; of several sets this is one, `behind` the rows of others."""
        self._metrics, self._log = metrics.open("a", encoding="utf-8"), log.open("a", encoding="utf-8")
        self._total, self._before, self._say = total, done, say
        self._about, self._behind = {"set": set_name} if set_name else {}, behind
        self._started = self._told = time.monotonic()

    @property
    def due(self) -> bool:
        """True where the last line is some time ago."""
        return time.monotonic() - self._told >= EVERY_SECONDS

    def tell(self, rows: int, tokens: int, memory_gib: float) -> None:
        """A line of what all ranks have done in this attempt."""
        self._told = time.monotonic()
        seconds = self._told - self._started
        rate = rows / seconds if seconds else 0.0
        left = self._total - self._before - rows
        line = {
            "step": self._behind + self._before + rows, **self._about, "rows": rows, "seconds": round(seconds, 3),
            "tokens": tokens, "rows_per_second": rate, "tokens_per_second": tokens / seconds if seconds else 0.0,
            "memory_gib": round(memory_gib, 3),
        }  # fmt: skip
        if rate and left:
            line["seconds_left"] = round(left / rate, 1)
        self.write(line)
        text = (
            f"row {self._before + rows:,}/{self._total:,}  {rate:.2f} rows/s  {line['tokens_per_second']:,.0f} tokens/s"
        )
        self.say(text + (f"  {line['seconds_left']:,.0f} s left" if "seconds_left" in line else ""))

    def write(self, line: Mapping[str, Any]) -> None:
        """The line stands in metrics.jsonl."""
        self._metrics.write(json.dumps(line) + "\n")
        self._metrics.flush()

    def say(self, text: str) -> None:
        """The line is shown, and stands in log.txt."""
        self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        self._log.flush()
        self._say(text)

    def close(self) -> None:
        """Nothing is written after this."""
        self._metrics.close()
        self._log.close()


class Progress:
    """Counts of all ranks; who looks on while requests are completed."""

    def __init__(
        self,
        tally: Tally,
        stopping: Callable[[], bool],
        report: Report | None,
        device: torch.device,
        *,
        counts: bool,
    ) -> None:
        """A rank that `counts` leads its group; the first one has the report."""
        self.stopping = stopping
        self._tally, self._report, self._device, self._counts = tally, report, device, counts

    def made(self, tokens: int) -> None:
        """So many tokens more."""
        if tokens:
            pulse.at_work()
        self._add("tokens", tokens)
        if self._report is not None and self._report.due:
            self._tell(self._report)

    def row(self, counted: bool) -> None:  # noqa: FBT001 - of several samples of a row, one counts
        """A completion has ended."""
        self._add("rows", int(counted))

    def leave(self, ranks: Ranks) -> bool:
        """We have no more to do; the first rank, which keeps the counters, waits until that is true of all.

        False where it is asked to stop before.
        """
        left = self._tally.add("left")
        while ranks.first and left < ranks.world_size:
            if self.stopping():
                return False
            time.sleep(POLL_SECONDS)
            self.made(0)
            left = self._tally.add("left", 0)
        return True

    def close(self) -> None:
        """The last line is told."""
        if self._report is not None:
            self._tell(self._report)
            self._report.close()

    def _add(self, name: str, amount: int) -> None:
        if self._counts:
            self._tally.add(name, amount)

    def _tell(self, report: Report) -> None:
        report.tell(self._tally.add("rows", 0), self._tally.add("tokens", 0), memory_gib(self._device))
