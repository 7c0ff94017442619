"""What runs on a machine: torchrun's agent with one worker a process, and an exit status that says how it went.

`python -m velocity.distributed.node [--node INDEX NODES HOST:PORT] PROCESSES FAILURES MODULE ARGUMENT...`
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import uuid
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from velocity.distributed import failure, pulse
from velocity.distributed.failure import Failure
from velocity.distributed.watchdog import Watchdog
from velocity.errors import Problem
from velocity.process import become_parent, children, die_with_parent, hear_stops, ignore_stops, stops_wait
from velocity.terminal import keep_secrets

FAILED = 1
LOOK_SECONDS = 0.1
AT_ONCE_SECONDS = 2
MEET_SECONDS = 600  # for the agents of other nodes, which have all been told to start


@dataclass(frozen=True)
class Agent:
    """What torchrun's agent is told: `processes` ranks here, on node `index` of `nodes`, whose ranks meet at `address`.

    The address is the first node's host:port; left out where there is one node.
    """

    processes: int
    index: int = 0
    nodes: int = 1
    address: str = ""

    @property
    def config(self) -> LaunchConfig:
        """The same for torchrun."""
        # not the machine's own name, which need not have an address: in a container it often has none
        where: dict[str, Any] = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "local_addr": "localhost"}
        if self.nodes > 1:
            timeouts = {"rank": self.index, "timeout": MEET_SECONDS}
            where = {"rdzv_backend": "static", "rdzv_endpoint": self.address, "rdzv_configs": timeouts}
        return LaunchConfig(
            min_nodes=self.nodes, max_nodes=self.nodes, nproc_per_node=self.processes,
            run_id=self.address or uuid.uuid4().hex, max_restarts=0, monitor_interval=0.2, **where,
        )  # fmt: skip


def main(agent: Agent, failures: Path, module: str, arguments: list[str]) -> int:
    """Call `main(*arguments)` of the module in all ranks of this node; return the first failure's exit status, or 0.

    A rank that a signal killed, or that hangs, cannot say so itself: its failure is written into `failures`.
    """
    die_with_parent()
    keep_secrets()
    become_parent()  # of the ranks
    _quieten()
    asked: list[int] = []
    hear_stops(asked.append)
    with ThreadPoolExecutor(1) as starter:
        # in this thread torchrun's agent would hear signals by itself, and a second one would end it before ranks saved
        with stops_wait():
            ranks = starter.submit(_run, agent, failures, module, arguments)
        _pass_on(asked, ranks)
    ignore_stops()
    return ranks.result()


def _pass_on(asked: list[int], ranks: Future[int]) -> None:
    """Until they have ended, each rank hears once that we were asked to stop, also one that starts later."""
    told: set[int] = set()
    while not wait([ranks], LOOK_SECONDS).done:
        for rank in set(children(os.getpid())) - told if asked else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank, asked[0])
            told.add(rank)


def _run(agent: Agent, failures: Path, module: str, arguments: list[str]) -> int:
    watchdog = Watchdog(failures)
    watchdog.start()
    try:
        elastic_launch(agent.config, sys.executable)("-m", "velocity.distributed.begin", module, *arguments)
    except ChildFailedError as error:
        return FAILED if watchdog.fired else _failed(failures, error)
    finally:
        watchdog.stop()
    return 0


def _failed(failures: Path, error: ChildFailedError) -> int:
    """The exit status of the first rank that failed; its failure lies in the folder where a signal killed it."""
    rank, first = error.get_first_failure()
    # its peers may have said within the same second that it is gone; torchrun ends whoever does not end by itself
    soon = {one: each for one, each in error.failures.items() if each.timestamp <= first.timestamp + AT_ONCE_SECONDS}
    killed = [one for one, each in soon.items() if each.exitcode < 0 and each.exitcode != -signal.SIGTERM]
    if first.exitcode >= 0 and not killed:
        return int(first.exitcode)
    rank = min(killed, default=rank)
    name = signal.Signals(-error.failures[rank].exitcode).name
    doing = pulse.read(pulse.doing_file(failures, rank)) or {"rank": rank, "host": pulse.host()}
    fix = "if nobody killed it, memory was short: the kernel's log says so"
    stack, trace = pulse.stack_file(failures, rank), ""
    if stack.is_file() and (trace := stack.read_text(encoding="utf-8", errors="replace")):
        fix = f"it crashed, and left its stack in {stack}; please report it"
    problem = Problem(f"a process was killed by {name}", pulse.where(doing), fix)
    what = Failure(str(problem), exit_status=FAILED, kind="Killed", trace=trace, killed=True)
    failure.record(failures, rank, what, doing)
    return FAILED


def _quieten() -> None:
    """torchrun's loggers, each of which has a level of its own, say nothing: we say how it went."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def from_arguments(arguments: list[str]) -> tuple[Agent, Path, str, list[str]]:
    """What `main` takes, of a command line."""
    index, nodes, address = "0", "1", ""
    if arguments[0] == "--node":
        index, nodes, address, *arguments = arguments[1:]
    processes, failures, module, *rest = arguments
    return Agent(int(processes), int(index), int(nodes), address), Path(failures), module, rest


if __name__ == "__main__":
    sys.exit(main(*from_arguments(sys.argv[1:])))
