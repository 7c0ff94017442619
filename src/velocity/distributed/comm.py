"""Ranks: who we are, what all ranks agree on. The only place that reads the launcher's environment."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, partial, wraps
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import HashStore, TCPStore  # type: ignore[attr-defined]

from velocity.distributed import pulse
from velocity.errors import UserError

# How long a rank waits for the others: the first one writes whole models and checkpoints while they wait.
PATIENCE = timedelta(hours=2)
PRIVATE = "VELOCITY_PRIVATE_DISK"  # is set where each node's disk is its own


@dataclass(frozen=True)
class Ranks:
    """Our place among the processes of a job."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_size: int = 1  # ranks of our node
    private: bool = False  # each node's disk is its own

    @property
    def first(self) -> bool:
        """True on the one rank that writes files and messages."""
        return self.rank == 0

    @property
    def keeps(self) -> bool:
        """True on the one rank of a disk that looks after the run folder on it."""
        return self.local_rank == 0 if self.private else self.first

    @property
    def keepers(self) -> range:
        """The ranks that do."""
        return range(0, self.world_size, self.local_size if self.private else self.world_size)

    def share(self, names: Sequence[str]) -> Sequence[str]:
        """Our part of what all ranks of a disk look at together."""
        return names[self.local_rank :: self.local_size] if self.private else names[self.rank :: self.world_size]

    @property
    def device(self) -> torch.device:
        """Our GPU, or the processor on a machine without."""
        return torch.device("cuda", self.local_rank) if torch.cuda.is_available() else torch.device("cpu")


def from_environment() -> Ranks:
    """As torchrun and our node say."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    rank, local_rank, world_size, local_size = (int(os.environ[name]) for name in names)
    return Ranks(rank, local_rank, world_size, local_size, PRIVATE in os.environ)


def prepare_deepspeed() -> None:
    """DeepSpeed imports quietly, and compiles nothing on a processor."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import logging

    import deepspeed.ops

    with compiled_when_called(), suppress(ImportError):  # every optimizer of ZeRO imports it, whichever it is
        import deepspeed.runtime.zero.muon.original_muon

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # Without this, init_distributed compiles an operator for 70 s, and fails where there is no ninja.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


@contextmanager
def compiled_when_called() -> Iterator[None]:
    """Meanwhile torch.compile compiles a function when it is first called.

    DeepSpeed decorates three of Muon's: each rank would import TorchInductor for them, a second long.
    """
    at_once: Any = torch.compile

    def later(function: Any = None, **options: Any) -> Any:
        if function is None:
            return partial(later, **options)
        compiled = cache(lambda: at_once(function, **options))

        @wraps(function)
        def call(*given: Any, **named: Any) -> Any:
            return compiled()(*given, **named)

        return call

    torch.compile = later  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = at_once


def start(ranks: Ranks) -> None:
    """The process group of all ranks exists."""
    prepare_deepspeed()
    import deepspeed

    if ranks.device.type == "cuda":
        torch.cuda.set_device(ranks.device)
    backend = "nccl" if ranks.device.type == "cuda" else "gloo"
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, timeout=PATIENCE, verbose=False)


def gather_for(readers: Iterable[tuple[torch.nn.Module, torch.nn.Parameter]]) -> None:
    """ZeRO 3 gathers each parameter while that module runs, which reads it though it belongs to another one."""
    import deepspeed

    for module, parameter in readers:
        deepspeed.zero.register_external_parameter(module, parameter)


def stop() -> None:
    """The process group is gone."""
    if dist.is_initialized():
        dist.destroy_process_group()


class Tally:
    """Counters that all ranks share; each call of `add` is one atomic step, on whatever machine a rank is."""

    def __init__(self, ranks: Ranks) -> None:
        self._store = _shared_store(ranks)

    def add(self, name: str, amount: int = 1) -> int:
        """The counter after we added to it."""
        return int(self._store.add(name, amount))


class Board:
    """Notes that ranks leave for each other. A thread of its own may use it while others compute."""

    POLL_SECONDS = 0.05

    def __init__(self, ranks: Ranks) -> None:
        self._store = _shared_store(ranks)

    def post(self, name: str, text: str) -> None:
        """The note can be taken."""
        self._store.set(name, text)

    def take(self, name: str, patience_seconds: float) -> str:
        """The note, which is then gone; TimeoutError where nobody posts it."""
        end = time.monotonic() + patience_seconds
        # a blocking wait would hold the store's lock, and our own main thread with it
        while not self._store.check([name]):
            if time.monotonic() > end:
                raise TimeoutError(f"nobody posted {name}")
            time.sleep(self.POLL_SECONDS)
        text = bytes(self._store.get(name)).decode()
        self._store.delete_key(name)
        return text


def _shared_store(ranks: Ranks) -> Any:
    """A store that all ranks write and read; rank 0 serves it. Every rank calls it."""
    if ranks.world_size == 1:
        return HashStore()
    address = os.environ["MASTER_ADDR"]
    served = TCPStore(address, 0, is_master=True, wait_for_workers=False) if ranks.first else None
    port = from_first(served.port if served else None)
    return served or TCPStore(address, port, is_master=False, wait_for_workers=False)


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of a tensor over all ranks; the tensor itself where there is one process."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(value)
    return value


def from_first(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    box = [value]
    with pulse.waiting():
        dist.broadcast_object_list(box)
    return box[0]


def gather(value: Any) -> list[Any]:
    """Every rank's value, on every rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    box: list[Any] = [None] * dist.get_world_size()
    with pulse.waiting():
        dist.all_gather_object(box, value)
    return box


def any_rank(flag: bool) -> bool:  # noqa: FBT001 - as an engine's, where there is none yet
    """True, on every rank, where it is on one."""
    return any(gather(flag))


def wait_for_all() -> None:
    """All ranks have come this far."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        with pulse.waiting():
            dist.barrier()


def check_device(device: torch.device, gpus: Sequence[Any]) -> None:
    """Nothing, or UserError where the plan was made for GPUs and torch has none, or the other way round."""
    if (device.type == "cuda") != bool(gpus):
        what = f"torch computes on {device.type}, the plan is for {len(gpus)} GPU(s)"
        raise UserError(what, "the installed torch", "install the torch that fits the driver: docs/guides/hardware.md")
