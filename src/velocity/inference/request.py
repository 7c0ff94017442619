"""What an engine's batch is asked for, and what comes back: token ids. It knows no text, no file and no rank."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

Finish = Literal["stop", "length", "error"]


@dataclass(frozen=True)
class Request:
    """One completion of one row. `seed` decides its random numbers, whatever batch or rank it meets."""

    row: int
    sample: int
    ids: Sequence[int]
    seed: int = 0


@dataclass
class Completion:
    """The tokens that follow a prompt, the one that ended them included; where it failed, `error` says why."""

    ids: list[int] = field(default_factory=list)
    finish: Finish = "length"
    logps: list[float] = field(default_factory=list)
    error: str | None = None


class Queue(Protocol):
    """Where requests come from: longest prompts first."""

    def peek(self) -> Request | None:
        """The next request, which stays; None where there is no more for us."""
        ...

    def pop(self) -> Request:
        """The next request, which is ours from now on."""
        ...


class Watch(Protocol):
    """Who looks on while requests are completed."""

    def stopping(self) -> bool:
        """True once we are asked to leave."""
        ...

    def made(self, tokens: int) -> None:
        """So many tokens more."""
        ...


def seed_of(seed: int, row_id: str, sample: int) -> int:
    """A row's own seed: the same in whatever place, batch or rank the row is."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{row_id}/{sample}".encode(), digest_size=8).digest(), "big")


def uniform(seed: int, step: int) -> float:
    """A number in [0, 1) that depends on a row's seed and the step alone."""
    drawn = hashlib.blake2b(step.to_bytes(8, "big"), key=seed.to_bytes(8, "big"), digest_size=8).digest()
    return (int.from_bytes(drawn, "big") >> 11) / 2**53
