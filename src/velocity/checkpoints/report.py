"""How a save went, for those who hear of it and need no tensors."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Report:
    """How a save went: the seconds from its begin to its commit, those in which training waited, and the bytes.

    `trouble` says why there is no checkpoint; `kept` are the steps of those that are kept beside it.
    """

    step: int
    seconds: float = 0.0
    blocked_seconds: float = 0.0
    bytes: int = 0
    trouble: str = ""
    kept: tuple[int, ...] = ()
