"""What runs on a machine: torchrun's agent with one worker a process, and an exit status that says how it went.

`python -m velocity.distributed.node PROCESSES FAILURES MODULE ARGUMENT...`
"""

from __future__ import annotations

import logging
import signal
import sys
import uuid
from pathlib import Path

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from velocity.distributed import failure
from velocity.errors import Problem
from velocity.process import become_parent, die_with_parent

FAILED, INTERRUPTED = 1, 75
# Asked to stop, the ranks end their step and save. torchrun would kill them after 30 s; whoever asked can do that.
STOP_SECONDS = 3600


def main(processes: int, failures: Path, module: str, arguments: list[str]) -> int:
    """Run `python -m module arguments` in `processes` ranks; return the first failure's exit status, or 0.

    A rank that a signal killed cannot say so itself: its failure is written into the folder `failures`.
    """
    die_with_parent()
    become_parent()  # of the ranks
    _quieten()
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=uuid.uuid4().hex, max_restarts=0,
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", monitor_interval=0.2, signals_to_handle="SIGTERM,SIGINT",
        shutdown_timeout=STOP_SECONDS,
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-m", module, *arguments)
    except ChildFailedError as error:
        rank, first = error.get_first_failure()
        if first.exitcode < 0:
            what = f"a process was killed by {signal.Signals(-first.exitcode).name}"
            fix = "if nobody killed it, memory was short: the kernel's log says so"
            problem = Problem(what, f"rank {rank} on {failure.host()}", fix)
            failure.record(failures, rank, str(problem), exit_status=FAILED, killed=True)
            return FAILED
        return int(first.exitcode)
    except SignalException:
        return INTERRUPTED
    return 0


def _quieten() -> None:
    """torchrun's loggers, each of which has a level of its own, say nothing: we say how it went."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4:]))
