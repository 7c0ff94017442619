"""This machine: one agent process that starts a worker a rank and is watched until it ends. It meets no other node."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from velocity.errors import InterruptedRun
from velocity.process import STOPS, as_parent, end_all, hear_stops, ignore_stops, stops_wait

INTERRUPTED = InterruptedRun.exit_status
LOOK_SECONDS = 0.05

# glibc hands freed activations back to the system and faults them in again at every step: 5 to 30 % of a step
KEEPING = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 33),
    "MALLOC_TOP_PAD_": str(1 << 28),
}
# and left to itself it keeps the buffers through which weights are streamed: more than twice their size
RETURNING = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}


# What ranks are told by their node's environment: the network interfaces that gloo and NCCL talk through, and whether
# the run folder is on a disk of the node's own.
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
PRIVATE = "VELOCITY_PRIVATE_DISK"


class Among(NamedTuple):
    """A node among others: its place, how many there are, and host:port of the first, where the ranks meet."""

    number: int
    nodes: int
    address: str


def render(module: str, run_folder: Path, failures: Path, processes: int, among: Among | None = None) -> list[str]:
    """The command that is started: a rank a process runs the module; what none can say itself goes to `failures`."""
    node = [sys.executable, "-m", "velocity.distributed.node"]
    if among is not None:
        node += ["--node", str(among.number), str(among.nodes), among.address]
    return [*node, str(processes), str(failures), module, str(run_folder)]


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def is_set(name: str) -> bool:
    """True where the user's environment has the variable."""
    return name in os.environ


def visible_gpus() -> list[str] | None:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves to us, by index or id; None where it is not set."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if named is None else [part.strip() for part in named.split(",") if part.strip()]


def environment(processes: int, cores: int, *, gpus: bool, thrifty: bool = False) -> dict[str, str]:
    """What the command's environment has besides our own: the cores are shared out, nothing warns twice.

    `thrifty` is for jobs that trade speed for memory.
    """
    added = {
        "OMP_NUM_THREADS": str(max(1, cores // processes)),
        "TOKENIZERS_PARALLELISM": "false",
        # DeepSpeed looks for ninja on the path, which lies beside the interpreter also where no environment is active
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    if thrifty:
        added |= RETURNING
    elif not gpus:
        added |= KEEPING
    return added if gpus else {**added, "DS_ACCELERATOR": "cpu"}


class Ended(NamedTuple):
    """How a command ended."""

    status: int  # its exit status; INTERRUPTED where it was ended because we were asked to stop
    asked: bool  # to stop, before it had ended


def run(
    command: list[str], added: Mapping[str, str], over: Callable[[], bool] = lambda: False, grace_seconds: float = 0.0
) -> Ended:
    """Start the command and wait for it. What asks us to stop is passed on; the second time all of it is killed.

    Slurm's warning does not count: the SIGTERM that follows it still leaves time to save. Where it is `over` elsewhere,
    what has not ended after the grace is killed.
    """
    asked: list[int] = []

    def hear(number: int) -> None:
        asked.append(number)
        end_all(process.pid) if at_once() else process.send_signal(number)

    def at_once() -> bool:
        return len(asked) - asked.count(signal.SIGUSR1) > 1

    before = {number: signal.getsignal(number) for number in STOPS}
    with stops_wait():
        # In a session of its own, so that Ctrl-C reaches it once, through us, and not a second time from the terminal.
        process = subprocess.Popen(command, env={**os.environ, **added, **as_parent()}, start_new_session=True)
        hear_stops(hear)
    try:
        # Not wait(): a signal that another thread is given leaves it waiting, and is not heard before it returns.
        since: float | None = None
        while (status := process.poll()) is None:
            time.sleep(LOOK_SECONDS)
            if since is None and over():
                since = time.monotonic()
            if since is not None and time.monotonic() - since > grace_seconds:
                end_all(process.pid)
    finally:
        if asked:
            ignore_stops()  # what is left is to say how it ended
        else:
            for number, handler in before.items():
                signal.signal(number, handler)
    return Ended(INTERRUPTED if at_once() and status else status, bool(asked))
