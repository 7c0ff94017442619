"""Finds the rank that hangs: the one that is behind while the others wait for it. It knows no run and no torch.

Every node looks at its own ranks alone, so that neither a clock nor a file system has to be shared; what ranks of other
machines say in the folder only tells who is further behind.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from velocity.distributed import failure, pulse
from velocity.distributed.failure import Failure
from velocity.errors import Problem
from velocity.terminal import say

LOOKS = 20  # in the time that a hang is given
SLOWEST_SECONDS, FASTEST_SECONDS = 1.0, 0.1
STACK_SECONDS = 3.0
# What a process that works uses, a second, and at least: of a core; of bytes read and written; of pages from a disk.
# A process that waits has threads that wake up now and then, and a tick of the processor's clock is 10 ms.
CORE, BYTES, FAULTS = (0.02, 0.1), (1 << 16, 1 << 20), (1, 10)
STOPPED = {"T": "it is stopped by a signal", "t": "a debugger holds it", "D": "it waits for a disk or a driver",
           "Z": "it has ended", "": "it is gone"}  # fmt: skip
NOT_RUNNING = ("T", "t", "Z", "")
FRAME = re.compile(r'^  File "(?P<file>.+)", line (?P<line>\d+) in (?P<name>.+)$', re.MULTILINE)
# Frames of a rank that waits for others: torch's collectives, DeepSpeed's, and waits on their handles.
COLLECTIVE = re.compile(r"torch/distributed/distributed_c10d\.py|deepspeed/comm/")
WAITS = ("wait", "synchronize", "barrier", "monitored_barrier")
INNERMOST = 6


@dataclass(frozen=True)
class Seen:
    """A rank as it was found when nothing went on: what it was doing, its process's state, its stack if it has one."""

    doing: Mapping[str, Any]
    state: str
    stack: str = field(default="", repr=False)

    @property
    def rank(self) -> int:
        """Its number."""
        return int(self.doing["rank"])

    @property
    def place(self) -> tuple[bool, int, int]:
        """How far it is: one that does not run is behind all others."""
        step = -1 if self.doing["step"] is None else int(self.doing["step"])
        return (self.state not in NOT_RUNNING, step, int(self.doing["place"]))

    @property
    def part(self) -> int:
        """Micro-batches that it has begun there; 0 where it counts none, as in a pipeline before its last stage."""
        return int(self.doing["part"])

    @property
    def waits(self) -> bool:
        """True where it has come to where it waits for others."""
        return bool(self.doing["waiting"]) or in_collective(self.stack)

    @property
    def frame(self) -> str:
        """`file.py:12 in function`, the innermost; empty without a stack."""
        frames = frames_of(self.stack)
        return f"{Path(frames[0][0]).name}:{frames[0][1]} in {frames[0][2]}" if frames else ""

    def why(self, minutes: str) -> str:
        """What is said of it where it is the one."""
        said = f"rank {self.rank} has made no progress for {minutes}"
        if self.state in STOPPED and not self.stack:
            return f"{said}: {STOPPED[self.state]}" + (f" (state {self.state})" if self.state else "")
        return f"{said}; it was in {self.frame}" if self.frame else f"{said}, while {self.doing['what']}"


def frames_of(stack: str) -> list[tuple[str, str, str]]:
    """File, line and function of the current thread's frames, the innermost first."""
    threads = re.split(r"^(?=(?:Current t|T)hread 0x)", stack, flags=re.MULTILINE)
    current = next((one for one in threads if one.startswith("Current")), threads[-1])
    return [(match["file"], match["line"], match["name"]) for match in FRAME.finditer(current)]


def in_collective(stack: str) -> bool:
    """True for a rank that has come to where it waits for the others."""
    frames = frames_of(stack)[:INNERMOST]
    return any(COLLECTIVE.search(file) or name in WAITS for file, _, name in frames)


def behind(ranks: Sequence[Seen]) -> list[Seen]:
    """Those that hold the others up. All of them, where nothing tells them apart."""
    late = _least(ranks, lambda seen: seen.place)
    if all(seen.part for seen in late):  # on a GPU a rank runs ahead of what it waits for
        late = _least(late, lambda seen: seen.part)
    return _least(late, lambda seen: seen.waits)


def _least(ranks: Sequence[Seen], key: Callable[[Seen], Any]) -> list[Seen]:
    least = min(map(key, ranks))
    return [seen for seen in ranks if key(seen) == least]


def spoken(seconds: float) -> str:
    """`30 min`, `8 s`."""
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


class Watchdog(threading.Thread):
    """Looks at the ranks that this process started, until they end or no longer get on; then it ends them."""

    def __init__(self, failures: Path) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.failures = failures
        self.fired = False
        self._over = threading.Event()

    def stop(self) -> None:
        """It looks no more."""
        self._over.set()

    def run(self) -> None:
        """Nothing, or the failure of the rank that hangs lies in the folder and all ranks of this node are killed."""
        before: dict[int, Sign] = {}
        quiet, limit, looked = 0.0, pulse.PATIENT_SECONDS, time.monotonic()
        while not self._over.wait(span := min(max(limit / LOOKS, FASTEST_SECONDS), SLOWEST_SECONDS)):
            # we may have been asleep, with all others: no look counts for more than twice the time between two
            passed, looked = min(time.monotonic() - looked, 2 * span), time.monotonic()
            ours = self._ours()
            limit = min((float(one["hang_seconds"]) for one in ours), default=pulse.PATIENT_SECONDS)
            signs = {one["rank"]: Sign.of(one) for one in ours}
            quiet += passed
            gets_on = any(sign.gets_on(before.get(rank), quiet) for rank, sign in signs.items())
            if gets_on or not ours:
                quiet, before = 0.0, signs
            if quiet >= limit:
                self._end(ours, limit)
                return

    def _ours(self) -> list[dict[str, Any]]:
        """What the ranks say that we started; one that has ended well says nothing."""
        said = filter(None, map(pulse.read, sorted(self.failures.glob("doing-*.json"))))
        return [one for one in said if parent_of(one["pid"]) == os.getpid()]

    def _end(self, ours: Sequence[Mapping[str, Any]], limit: float) -> None:
        seen = [Seen(one, state_of(one["pid"]), self._stack(one)) for one in ours]
        others = [Seen(one, "R") for one in self._elsewhere({one["rank"] for one in ours})]
        late = behind([*seen, *others])
        self.fired = True
        for one in seen:
            what = self._failure(one, late, limit)
            try:
                failure.record(self.failures, one.rank, what, one.doing)
            except OSError:  # a full disk; all the same they are to end
                say(what.what)
        for pid in [one["pid"] for one in ours]:
            if parent_of(pid) == os.getpid():
                _send(pid, signal.SIGKILL)

    def _elsewhere(self, ours: set[int]) -> list[dict[str, Any]]:
        said = filter(None, map(pulse.read, self.failures.glob("doing-*.json")))
        return [one for one in said if one["rank"] not in ours]

    def _failure(self, one: Seen, late: Sequence[Seen], limit: float) -> Failure:
        if one not in late:
            names = ", ".join(f"rank {other.rank} on {other.doing['host']}" for other in late)
            return Failure(f"it waited for {names}", kind="Hung", trace=one.stack, peer=True)
        file = pulse.stack_file(self.failures, one.rank)
        fix = f"its stack lies in {file}" if one.stack else "a rank that does not run has no stack to show"
        what = Problem(one.why(spoken(limit)), pulse.where(one.doing), f"{fix}; the same command goes on")
        return Failure(str(what), kind="Hung", trace=one.stack, hung=True)

    def _stack(self, one: Mapping[str, Any]) -> str:
        """Its stack, as it writes it when it is asked; empty where it does not run."""
        file = pulse.stack_file(self.failures, one["rank"])
        if not file.is_file() or state_of(one["pid"]) in NOT_RUNNING:
            return ""
        start, last = file.stat().st_size, -1
        _send(one["pid"], pulse.STACK_SIGNAL)
        deadline = time.monotonic() + STACK_SECONDS
        while time.monotonic() < deadline:
            time.sleep(0.1)
            size = file.stat().st_size
            if size > start and size == last:
                break
            last = size
        with file.open(encoding="utf-8", errors="replace") as stream:
            stream.seek(start)
            return stream.read()


@dataclass(frozen=True)
class Sign:
    """What tells of a rank's life: its beats; and, where it is busy with one long thing, what its processes use."""

    beats: int
    busy: bool
    ticks: int = 0
    bytes: int = 0
    faults: int = 0

    @classmethod
    def of(cls, doing: Mapping[str, Any]) -> Sign:
        """Of what it says, and of its process with those that it started."""
        alone = not doing["busy"] or doing["waiting"]
        used = [] if alone else [used_by(pid) for pid in descendants(int(doing["pid"]))]
        ticks, count, faults = (sum(column) for column in zip(*used, strict=True)) if used else (0, 0, 0)
        return cls(int(doing["beats"]), not alone, ticks, count, faults)

    def gets_on(self, before: Sign | None, seconds: float) -> bool:
        """True where something was done since the sign before, so many seconds ago."""
        if before is None or self.beats != before.beats or self.busy != before.busy:
            return True
        if not self.busy:
            return False
        core_seconds = (self.ticks - before.ticks) / os.sysconf("SC_CLK_TCK")
        used = ((core_seconds, CORE), (self.bytes - before.bytes, BYTES), (self.faults - before.faults, FAULTS))
        return any(much > max(rate * seconds, least) for much, (rate, least) in used)


def _send(pid: int, number: int) -> None:
    """The process has the signal, where it still is."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name, which may hold anything; empty where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def state_of(pid: int) -> str:
    """R, S, D, T …: as proc(5) has them; empty where there is no such process."""
    return next(iter(_stat(pid)), "")


def parent_of(pid: int) -> int | None:
    """Who started the process."""
    fields = _stat(pid)
    return int(fields[1]) if fields else None


def descendants(pid: int) -> list[int]:
    """The process and all that it started: compilers, readers."""
    found = [pid]
    for one in found:
        for children in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                found += map(int, children.read_text().split())
            except OSError:  # the thread has ended
                continue
    return found


def used_by(pid: int) -> tuple[int, int, int]:
    """Processor ticks, bytes read and written, and pages fetched from a disk, so far."""
    fields, count = _stat(pid), 0
    try:
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
        count = sum(int(line.split()[1]) for line in lines if line.startswith(("rchar", "wchar")))
    except OSError:
        pass
    return (int(fields[11]) + int(fields[12]), count, int(fields[9])) if fields else (0, 0, 0)
