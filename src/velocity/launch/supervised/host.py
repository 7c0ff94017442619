"""One host of a job: runs what comes by its standard input, and ends with that. It knows no target.

`python -m velocity.launch.supervised.host` reads a line, the order as JSON: `folder`, `files` to write there,
`environment`, `command`. Then each line `stop` asks the job to stop; an empty one says that the launcher is still
there. What the job prints comes out on standard output, and last, behind MARK, its verdict: `exit_status` and `why`.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from threading import Thread
from typing import Any

from velocity.errors import InterruptedRun, JobError, VelocityError, from_system
from velocity.files import make_private
from velocity.process import PR_SET_PDEATHSIG, children, end_all, hear_stops

MARK = "\x1e"  # RFC 7464's: no line of a job begins with it
VERDICT = "VELOCITY_VERDICT"
STOP, HERE = "stop\n", "\n"
LOOK_SECONDS = 0.05
SILENCE_SECONDS = 120.0  # a launcher that says nothing for so long is gone: it speaks every 15
LEAVE_SECONDS = 120.0  # the job has to save, once its launcher is gone
AT_ONCE_SECONDS = 10.0  # and to say how it ended, when asked a second time
DRAIN_SECONDS = 5.0
PR_SET_CHILD_SUBREAPER = 36


class Orders:
    """What our launcher says, line by line; `gone` once it speaks no more."""

    def __init__(self, handle: int, silence_seconds: float = SILENCE_SECONDS) -> None:
        self.gone = False
        self._handle = handle
        self._silence_seconds = silence_seconds
        self._heard = time.monotonic()
        self._said = b""

    def next(self, wait_seconds: float = LOOK_SECONDS) -> str | None:
        """The next line, with its end; None where none came within that time."""
        line, end, rest = self._said.partition(b"\n")
        if end:
            self._said = rest
            return (line + end).decode()
        if self.gone:
            time.sleep(wait_seconds)
        elif select.select([self._handle], [], [], wait_seconds)[0]:
            more = os.read(self._handle, 1 << 16)
            self._said, self._heard, self.gone = self._said + more, time.monotonic(), not more
        else:
            self.gone = time.monotonic() - self._heard > self._silence_seconds
        return None

    def first(self) -> Mapping[str, Any]:
        """The order itself; JobError where the launcher went away before it had said all of it."""
        while (line := self.next()) is None:
            if self.gone:
                raise JobError("the launcher went away before it had said what to run")
        order: Mapping[str, Any] = json.loads(line)
        return order


class Output:
    """What the job prints, passed on as it comes, also where nobody listens any more; `error` is the last one in it."""

    def __init__(self, stream: Any) -> None:
        self.error: list[str] = []
        self._thread = Thread(target=self._pass_on, args=(stream,), daemon=True)
        self._thread.start()

    def end(self) -> None:
        """All of it was passed on, unless some process that we do not know holds the stream open."""
        self._thread.join(DRAIN_SECONDS)

    def _pass_on(self, stream: Any) -> None:
        for line in stream:
            say(line if line.endswith(b"\n") else line + b"\n")  # the verdict's line is another one
            text = line.decode(errors="replace").rstrip()
            if text.startswith("error: "):
                self.error = [text.removeprefix("error: ")]
            elif self.error and text.startswith(("  where: ", "  fix:   ")):
                self.error.append(text)


class Stops:
    """How often the job was asked to stop, and by when it has to be gone."""

    def __init__(self, leave_seconds: float, at_once_seconds: float) -> None:
        self.count = 0
        self.by: float | None = None
        self._leave_seconds, self._at_once_seconds = leave_seconds, at_once_seconds
        self._abandoned = False

    def ask(self, _: int = 0) -> None:
        """Once more."""
        self.count += 1
        if self.count > 1:
            self._end_within(self._at_once_seconds if self.count == 2 else 0.0)

    def abandon(self) -> None:
        """Nobody is there whom it could tell how it ended: it saves, and leaves."""
        if not self._abandoned:
            self._abandoned = True
            self.count = max(self.count, 1)
            self._end_within(self._leave_seconds)

    def _end_within(self, seconds: float) -> None:
        self.by = min(time.monotonic() + seconds, self.by or float("inf"))


def run(order: Mapping[str, Any], orders: Orders, stops: Stops) -> dict[str, Any]:
    """The job's verdict, once it and all that it started are gone, and the files that were sent with it."""
    folder, files = Path(order["folder"]), order["files"]
    verdict = folder / "verdict.json"
    try:
        make_private(folder)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
        hear_stops(stops.ask)  # of whoever ends this host
        added = {**order["environment"], VERDICT: str(verdict.absolute())}
        process = subprocess.Popen(
            order["command"], env={**os.environ, **added}, start_new_session=True, preexec_fn=_end_with_parent,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        output = Output(process.stdout)
        _wait(process, orders, stops)
        _end_what_is_left()
        output.end()
        return _verdict(verdict, process.returncode, output.error, asked=stops.count > 0)
    finally:
        if files:
            for name in [*files, verdict.name]:
                (folder / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # something else lies there
                os.removedirs(folder)


def _wait(process: subprocess.Popen[bytes], orders: Orders, stops: Stops) -> None:
    """The process has ended, by itself or in time."""
    told = 0
    while process.poll() is None:
        if orders.next() == STOP:
            stops.ask()
        if orders.gone:
            stops.abandon()
        if stops.by is not None and time.monotonic() > stops.by:
            end_all(process.pid)
        elif told < stops.count:
            told += 1
            process.send_signal(signal.SIGTERM)


def _verdict(file: Path, exit_status: int, error: list[str], *, asked: bool) -> dict[str, Any]:
    """What the job itself said; else what can be seen from outside."""
    if file.is_file():
        said: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return said
    if exit_status >= 0:
        why = "\n".join(error) or f"the job's process ended with {exit_status}"
        return {"exit_status": exit_status, "why": why if exit_status else ""}
    if asked:
        return _of(InterruptedRun("stopped before it could save", fix="run the same command to go on"))
    name = signal.Signals(-exit_status).name
    fix = "was memory short? the kernel's log says so; the same command goes on"
    return _of(JobError(f"the job's process was killed by {name}", os.uname().nodename, fix))


def _of(error: VelocityError) -> dict[str, Any]:
    return {"exit_status": error.exit_status, "why": str(error)}


def _end_with_parent() -> None:
    """In the job's process: the kernel ends it when we die (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _keep_orphans() -> None:
    """What the job leaves behind becomes our child, so that it is found (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def _end_what_is_left() -> None:
    for child in children(os.getpid()):
        end_all(child)


def say(line: bytes) -> None:
    """The line is on standard output, or nobody listens."""
    with contextlib.suppress(OSError):
        while line:
            line = line[os.write(sys.stdout.fileno(), line) :]


def main(
    *, silence_seconds: float = SILENCE_SECONDS, leave_seconds: float = LEAVE_SECONDS,
    at_once_seconds: float = AT_ONCE_SECONDS,
) -> int:  # fmt: skip
    """The job's exit status."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the end of standard input says so, too
    _keep_orphans()
    orders = Orders(sys.stdin.fileno(), silence_seconds)
    try:
        verdict = run(orders.first(), orders, Stops(leave_seconds, at_once_seconds))
    except VelocityError as error:
        verdict = _of(error)
    except OSError as error:
        verdict = _of(from_system(error, os.uname().nodename))
    say(f"{MARK}{json.dumps(verdict)}\n".encode())
    return int(verdict["exit_status"])


if __name__ == "__main__":
    sys.exit(main())
