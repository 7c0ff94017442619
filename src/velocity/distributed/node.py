"""What runs on a machine: torchrun's agent with one worker a process, and an exit status that says how it went.

`python -m velocity.distributed.node PROCESSES MODULE ARGUMENT...`
"""

from __future__ import annotations

import logging
import signal
import sys
import uuid

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from velocity.distributed.comm import die_with_parent

FAILED, INTERRUPTED = 1, 75


def main(processes: int, module: str, arguments: list[str]) -> int:
    """Run `python -m module arguments` in `processes` ranks; return the first failure's exit status, or 0."""
    die_with_parent()
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=uuid.uuid4().hex, max_restarts=0,
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", monitor_interval=0.2, signals_to_handle="SIGTERM,SIGINT",
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-m", module, *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            print(f"rank {rank} was killed by {name}", file=sys.stderr, flush=True)
            return FAILED
        return int(failure.exitcode)
    except SignalException:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
