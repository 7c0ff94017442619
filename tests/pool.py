"""One pool of two rank processes for the whole test session: starting a job a check would take 15 s each."""

from __future__ import annotations

import multiprocessing
import os
import queue
import socket
import time
import traceback
from collections.abc import Callable
from typing import Any

from velocity.garbage import importing

RANK = "a rank of the pool"  # what its processes are called


def _serve(rank: int, size: int, port: int, inbox: Any, outbox: Any) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size),
        MASTER_ADDR="localhost", MASTER_PORT=str(port), OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu",
    )  # fmt: skip
    with importing():  # as a job's ranks do: ZeRO 3 collects garbage at each of its starts, hundreds in a session
        import torch

        import tests.running  # noqa: F401 - what most functions need
        from velocity.distributed import comm
        from velocity.distributed.tensor import forget
        from velocity.process import die_with_parent

    die_with_parent()
    torch.set_num_threads(1)
    ranks = comm.from_environment()
    with importing():
        comm.start(ranks)
    while (call := inbox.get()) is not None:
        function, arguments = call
        try:
            outbox.put((rank, function(ranks, *arguments), None))
        except BaseException as error:  # the test shows it
            outbox.put((rank, None, f"rank {rank}: {error!r}\n{traceback.format_exc()}"))
        forget()  # DeepSpeed has one memory of groups for all engines of a process
    comm.stop()


class Pool:
    """`pool(function, *arguments)` calls `function(ranks, *arguments)` on every rank; the results come by rank."""

    def __init__(self, size: int) -> None:
        context = multiprocessing.get_context("spawn")
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        self.outbox = context.Queue()
        self.inboxes = [context.Queue() for _ in range(size)]
        self.processes = [
            context.Process(target=_serve, name=RANK, args=(rank, size, port, inbox, self.outbox))
            for rank, inbox in enumerate(self.inboxes)
        ]
        for process in self.processes:
            process.start()

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        for inbox in self.inboxes:
            inbox.put((function, arguments))
        answers = sorted(self._answers(), key=lambda answer: answer[0])
        failures = [failure for _, _, failure in answers if failure]
        assert not failures, "\n".join(failures)
        return [result for _, result, _ in answers]

    def _answers(self) -> list[tuple[int, Any, str | None]]:
        """Each rank's; where one failed, of those that answer soon: the others may wait for it in a collective."""
        answers: list[tuple[int, Any, str | None]] = []
        heard = time.monotonic()
        while len(answers) < len(self.inboxes):
            failed = any(failure for *_, failure in answers)
            try:
                answers.append(self.outbox.get(timeout=1))
                heard = time.monotonic()
            except queue.Empty:
                assert all(one.is_alive() for one in self.processes), "a rank of the pool has died"
                if time.monotonic() - heard > (20 if failed else 240):
                    assert answers, "no rank has answered"
                    break
        return answers

    def close(self) -> None:
        for inbox in self.inboxes:
            inbox.put(None)
        for process in self.processes:
            process.join(timeout=20)
            if process.is_alive():
                process.kill()
