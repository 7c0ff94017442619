"""When an attempt has to save, so that it has ended before its time is up. It knows no signals, no ranks, no files."""

from __future__ import annotations

import time
from collections.abc import Callable

# How long a save takes before there was one: who gives minutes has a model that is written in seconds, and of what is
# trained for hours 600 GB, 40 billion parameters with AdamW, take ten minutes at 1 GB/s.
UNKNOWN_SHARE, UNKNOWN_SECONDS = 0.1, 600.0
LEAVING_SECONDS = 10.0  # until trackers are closed and processes gone: 2 with two ranks on two cores that are idle
SLACK = 1.2  # neither steps nor saves take the same time twice


class Deadline:
    """The end of an attempt, and what has to be done until then; both become known while it runs."""

    def __init__(self, seconds: float, elapsed: float, clock: Callable[[], float] = time.monotonic) -> None:
        """The attempt may take `seconds`; `elapsed` of them are over."""
        self._clock, self._end = clock, clock() + seconds - elapsed
        self._step_seconds, self._save_seconds = 0.0, min(UNKNOWN_SHARE * seconds, UNKNOWN_SECONDS)
        self._saving_since: float | None = None

    def step_took(self, seconds: float) -> None:
        """A step took so long."""
        self._step_seconds = max(self._step_seconds, seconds)

    def saves_take(self, seconds: float) -> None:
        """The longest save so far took so long; 0 where there was none."""
        self._save_seconds = seconds or self._save_seconds

    def saving(self) -> None:
        """A save begins, which may go on in the background: a second one has to wait for it."""
        self._saving_since = self._clock()

    @property
    def reserve_seconds(self) -> float:
        """What one more step, the save behind it and leaving take, with the rest of a save that is under way."""
        rest = 0.0
        if self._saving_since is not None:
            rest = max(0.0, self._save_seconds - (self._clock() - self._saving_since))
        return SLACK * (self._step_seconds + self._save_seconds + rest) + LEAVING_SECONDS

    @property
    def is_near(self) -> bool:
        """True where there is no time left for one more step."""
        return self._clock() + self.reserve_seconds >= self._end
