"""The lines of a Job's pods, by kubectl: of all nodes as they come, attempt after attempt. It knows no verdict."""

from __future__ import annotations

import queue
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress

from velocity.errors import JobError
from velocity.launch.kubernetes.kubectl import Kubectl
from velocity.launch.kubernetes.state import Pod

LOOK_SECONDS = 2.0
LAST_SECONDS = 20.0  # for the last lines, once the job is over
LOST_SECONDS = 600.0  # so long the cluster may be out of reach
STARTED = ("Running", "Succeeded", "Failed")


def lines_so_far(kubectl: Kubectl, pods: Sequence[Pod]) -> Iterator[str]:
    """All lines that there are, of one pod after the other."""
    for pod in pods:
        if pod.phase in STARTED:
            for line in kubectl.ask("logs", pod.name).splitlines():
                yield f"{prefix_of(pod.index)}{line}"


def prefix_of(index: int) -> str:
    """What a node's lines begin with: nothing for the one that speaks."""
    return "" if index == 0 else f"[{index}] "


def follow(kubectl: Kubectl, look: Callable[[], tuple[Sequence[Pod], bool, str]]) -> Iterator[str]:
    """The lines as they come, until it is over: `look` says the pods, whether it is, and why it waits."""
    lines: queue.Queue[str] = queue.Queue()
    readers: dict[str, _Reader] = {}
    said, answered = "", time.monotonic()
    try:
        while True:
            try:
                pods, over, waits = look()
                answered = time.monotonic()
            except JobError:
                if time.monotonic() - answered > LOST_SECONDS:
                    raise
                pods, over, waits = [], False, said
            _read_from(pods, readers, kubectl, lines)
            if waits and waits != said:
                yield waits
            said = waits
            yield from _taken(lines, readers, LAST_SECONDS if over else LOOK_SECONDS, to_the_end=over)
            if over:
                return
    finally:
        for reader in readers.values():
            reader.stop()


def _read_from(pods: Sequence[Pod], readers: dict[str, _Reader], kubectl: Kubectl, lines: queue.Queue[str]) -> None:
    """Each pod that has begun is read; one whose connection broke while it runs, again from there."""
    for pod in pods:
        reader = readers.get(pod.name)
        broken = reader is not None and not reader.reading and pod.phase == "Running"
        if pod.phase in STARTED and (reader is None or broken):
            readers[pod.name] = _Reader(kubectl, pod, lines, since=reader.last if reader else "")


def _taken(
    lines: queue.Queue[str], readers: Mapping[str, _Reader], seconds: float, *, to_the_end: bool
) -> Iterator[str]:
    """What comes meanwhile; `to_the_end`: until nobody reads any more."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        with suppress(queue.Empty):
            yield lines.get(timeout=min(left, 0.2))
            continue
        if to_the_end and lines.empty() and not any(reader.reading for reader in readers.values()):
            return


class _Reader:
    """A thread that reads one pod's lines until its container has ended."""

    def __init__(self, kubectl: Kubectl, pod: Pod, lines: queue.Queue[str], since: str) -> None:
        self.last = since  # the time of the last line that was read
        again = [f"--since-time={since}"] if since else []
        self._process = kubectl.stream("logs", "--follow", "--timestamps", *again, pod.name)
        self._thread = threading.Thread(target=self._read, args=(lines, prefix_of(pod.index), since), daemon=True)
        self._thread.start()

    @property
    def reading(self) -> bool:
        """True while lines may come."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """It reads no more."""
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._thread.join(5)

    def _read(self, lines: queue.Queue[str], prefix: str, since: str) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            at, _, text = line.rstrip("\n").partition(" ")
            if at > since:  # --since-time gives whole seconds
                self.last = at
                lines.put(f"{prefix}{text}")
        self._process.wait()
