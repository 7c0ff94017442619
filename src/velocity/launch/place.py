"""Which of a job's nodes this is, as its target says by variables or a file. It asks nobody."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from velocity.errors import UserError

PORT = 29400  # where a node is a container with a network of its own
SAGEMAKER = Path("/opt/ml/input/config/resourceconfig.json")
# Ours, where a target says nothing by itself.
HOSTS, NODE, AT_PORT = "VELOCITY_HOSTS", "VELOCITY_NODE", "VELOCITY_PORT"


@dataclass(frozen=True)
class Place:
    """The names of a job's hosts in the order of their ranks, our own place among them, and the first one's port."""

    hosts: tuple[str, ...]
    index: int
    port: int = PORT
    attempt: int = 0  # how often the target has started the job before

    @property
    def first(self) -> bool:
        """True on the node that decides, and speaks."""
        return self.index == 0

    @property
    def host(self) -> str:
        """Our own name."""
        return self.hosts[self.index]


def find_place(kind: str, environment: Mapping[str, str] = os.environ) -> Place:
    """Where we are; UserError where we were not started as a node of that target."""
    try:
        place = PLACES[kind](environment)
    except (KeyError, ValueError, OSError) as error:
        what = f"this is no node of a job on {kind}: {error}"
        raise UserError(what, "velocity node", f"velocity run JOB --on {kind} starts it") from None
    if not 0 <= place.index < len(place.hosts):
        what = f"node {place.index} of {len(place.hosts)}: {', '.join(place.hosts)}"
        raise UserError(what, "velocity node", f"velocity run JOB --on {kind} starts it")
    return place


def verdict_file() -> Path | None:
    """Where the target wants to find how it went, on every node; None where it does not."""
    named = os.environ.get("VELOCITY_VERDICT")
    return Path(named) if named else None


def ours(environment: Mapping[str, str]) -> Place:
    """As our own variables say: VELOCITY_HOSTS=a,b VELOCITY_NODE=0 VELOCITY_PORT=29400."""
    hosts = tuple(environment[HOSTS].split(","))
    return Place(hosts, int(environment[NODE]), int(environment.get(AT_PORT, PORT)))


def slurm(environment: Mapping[str, str]) -> Place:
    """As srun says in each task; two jobs that meet on one host have two ports."""
    hosts = tuple(expanded(environment["SLURM_STEP_NODELIST"]))
    port = 20000 + int(environment["SLURM_JOB_ID"]) % 10000
    return Place(hosts, int(environment["SLURM_NODEID"]), port, int(environment.get("SLURM_RESTART_COUNT", 0)))


def kubernetes(environment: Mapping[str, str]) -> Place:
    """As an Indexed Job says in each pod: the index is its own, the names follow from the job's and the Service's."""
    job, service, nodes = (environment[name] for name in ("VELOCITY_JOB", "VELOCITY_SERVICE", "VELOCITY_NODES"))
    hosts = tuple(f"{job}-{index}.{service}" for index in range(int(nodes)))
    return Place(hosts, int(environment["JOB_COMPLETION_INDEX"]))


def sagemaker(_: Mapping[str, str]) -> Place:
    """As the file says that SageMaker puts into each container."""
    return of_resources(SAGEMAKER.read_text(encoding="utf-8"))


def of_resources(text: str) -> Place:
    """As resourceconfig.json says. Its hosts are in the order of letters, algo-10 before algo-2: we count."""
    found = json.loads(text)
    hosts = tuple(sorted(found["hosts"], key=_by_number))
    return Place(hosts, hosts.index(found["current_host"]))


PLACES: Mapping[str, Callable[[Mapping[str, str]], Place]] = {
    "ssh": ours, "slurm": slurm, "kubernetes": kubernetes, "sagemaker": sagemaker,
}  # fmt: skip


def _by_number(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def expanded(names: str) -> Iterator[str]:
    """Slurm's short form of host names, in its order: `gpu-[1-3,07],login` is gpu-1, gpu-2, gpu-3, gpu-07, login.

    ValueError for what is none.
    """
    for part in re.findall(r"(?:\[[^\]]*\]|[^,\[])+", names):
        yield from _expanded(part)


def _expanded(part: str) -> Iterator[str]:
    before, bracket, rest = part.partition("[")
    if not bracket:
        yield part
        return
    inside, closing, after = rest.partition("]")
    if not closing:
        raise ValueError(f"{part} is no list of hosts")
    for item in inside.split(","):
        first, dash, last = item.partition("-")
        for number in range(int(first), int(last if dash else first) + 1):
            for tail in _expanded(after):
                yield f"{before}{number:0{len(first)}}{tail}"
