"""The process that stays with a job: a command a host, each of which speaks with `host.py` on the other side.

`python -m velocity.launch.supervised.supervisor FOLDER` starts what FOLDER/nodes.json names, prints what the hosts
print, passes on what asks it to stop, and writes the job's end into FOLDER/ended.json. It knows no target, and no ssh.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, Thread
from typing import Any

from velocity.errors import InterruptedRun, Problem, VelocityError, from_system
from velocity.files import write_atomically
from velocity.launch.supervised.host import HERE, MARK, STOP
from velocity.process import hear_stops
from velocity.secrets import scrub

NODES, ENDED = "nodes.json", "ended.json"
LOOK_SECONDS = 0.1
HERE_SECONDS = 15.0
# Once a host has failed the others see it within half a minute. Then they are asked to stop; later left; then given up.
PATIENCE_SECONDS = (60.0, 300.0, 300.0)
SAVED = InterruptedRun.exit_status
FIX = "is that machine up? the same command goes on from the last checkpoint"

_printing = Lock()


@dataclass(frozen=True)
class End:
    """How a host ended: its verdict; None where none came, and `said` is what its command did instead."""

    index: int
    name: str
    verdict: Mapping[str, Any] | None
    said: str = ""
    time: float = 0.0

    @property
    def failed(self) -> bool:
        """True unless it did what it had to, or was stopped."""
        return self.verdict is None or self.verdict["exit_status"] not in (0, SAVED)


class Node:
    """One host: a command that runs it, spoken to by its standard input."""

    def __init__(self, index: int, name: str, command: Sequence[str], order: Mapping[str, Any]) -> None:
        self.end: End | None = None
        self._index, self._name = index, name
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        self.say(json.dumps(order) + "\n")
        self._thread = Thread(target=self._listen, daemon=True)
        self._thread.start()

    def say(self, text: str) -> None:
        """The host was told, or is gone."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(text.encode())
            self._process.stdin.flush()

    def leave(self) -> None:
        """The host hears nothing more: it ends the job there by itself."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def kill(self) -> None:
        """Its command is over."""
        self._process.kill()

    def _listen(self) -> None:
        verdict, said = None, ""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            text = line.decode(errors="replace").rstrip("\r\n")
            if text.startswith(MARK):
                verdict = json.loads(text.removeprefix(MARK))
            else:
                said = text.strip() or said
                _print(f"{self._name}: {text}" if self._index else text)
        status = self._process.wait()
        if status < 0 or not said:
            said = (
                f"its command {f'was killed by {signal.Signals(-status).name}' if status < 0 else f'ended: {status}'}"
            )
        self.end = End(self._index, self._name, verdict, said, time.monotonic())


def _print(text: str) -> None:
    with _printing:
        print(scrub(text), flush=True)


class Patience:
    """What is done about hosts that go on though another one has failed: they are asked, left, and at last given up."""

    def __init__(self, seconds: Sequence[float]) -> None:
        steps: Sequence[Callable[[Node], None]] = (lambda node: node.say(STOP), Node.leave, Node.kill)
        self._steps = list(zip(seconds, steps, strict=True))
        self._since: float | None = None

    def look(self, ends: Sequence[End], left: Sequence[Node]) -> None:
        """The next step is taken, where it is time."""
        now = time.monotonic()
        if self._since is None and any(end.failed for end in ends):
            self._since = now
        if self._since is not None and self._steps and now - self._since > self._steps[0][0]:
            _, step = self._steps.pop(0)
            self._since = now
            for node in left:
                step(node)


def supervise(nodes: Sequence[Node], asked: Sequence[int], *, patience_seconds: Sequence[float]) -> dict[str, Any]:
    """How the job ended, once all hosts have. It is asked to stop as often as `asked` grows."""
    patience, told, spoken = Patience(patience_seconds), 0, time.monotonic()
    while left := [node for node in nodes if node.end is None]:
        time.sleep(LOOK_SECONDS)
        said = STOP * (len(asked) - told)
        told = len(asked)
        if time.monotonic() - spoken > HERE_SECONDS:
            spoken, said = time.monotonic(), said + HERE
        for node in left if said else ():
            node.say(said)
        patience.look([node.end for node in nodes if node.end is not None], left)
    ends = [node.end for node in nodes if node.end is not None]
    return conclude(sorted(ends, key=lambda end: end.time), asked=bool(asked))


def conclude(ends: Sequence[End], *, asked: bool) -> dict[str, Any]:
    """The job's exit status, and why it is not 0, of its hosts' ends in the order in which they came.

    All that can speak say the same, so the first host's word counts; but where it could only see that another host was
    gone, we know which, and where nobody but we have `asked` it to stop, we know for whose failure.
    """
    first = next((end.verdict for end in ends if end.index == 0), None)
    if first is not None and first["exit_status"] in (0, 2, SAVED):
        before = ends[0].verdict if ends[0].failed and first["exit_status"] == SAVED and not asked else None
        return dict(before or first)
    cause = next((end for end in ends if end.failed), ends[0])
    if cause.verdict is not None:
        return dict(first or cause.verdict)
    if first is not None and re.search(rf"(?<![\w.-]){re.escape(cause.name)}(?![\w-])", first["why"]):
        return dict(first)
    what = f"{cause.name} is gone: {cause.said}"
    return {"exit_status": 1, "why": str(Problem(what, f"host {cause.name}", FIX))}


def start(folder: Path) -> list[Node]:
    """The hosts that the folder names, each with its order and the job's files."""
    plan = json.loads((folder / NODES).read_text(encoding="utf-8"))
    files = {name: (folder / name).read_text(encoding="utf-8") for name in plan["files"]}
    return [
        Node(index, one["host"], one["command"], {**one["order"], "files": files})
        for index, one in enumerate(plan["nodes"])
    ]


def main(folder: Path, *, patience_seconds: Sequence[float] = PATIENCE_SECONDS) -> int:
    """The job's exit status; it lies in the folder, too."""
    asked: list[int] = []
    hear_stops(asked.append)  # first: whoever has started us may ask us at once
    try:
        ended = supervise(start(folder), asked, patience_seconds=patience_seconds)
    except OSError as error:
        ended = _of(from_system(error))
    write_atomically(folder / ENDED, json.dumps(ended, indent=1) + "\n")
    return int(ended["exit_status"])


def _of(error: VelocityError) -> dict[str, Any]:
    return {"exit_status": error.exit_status, "why": str(error)}


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
