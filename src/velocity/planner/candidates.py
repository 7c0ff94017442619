"""Every strategy that a training job leaves open, with its predicted memory and speed, best first."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from velocity.config.combinations import SPLIT_ARCHITECTURES, Facts, clashes, limits
from velocity.config.training import TrainingJob
from velocity.errors import UserError
from velocity.planner.device import USABLE, device_bytes
from velocity.planner.hardware import GIB
from velocity.planner.machines import Cluster
from velocity.planner.memory import Memory, peak, state_bytes
from velocity.planner.size import ModelSize
from velocity.planner.speed import Speed, inner_of, rows_a_step, step_speed

CPU_MICRO_TOKENS = 1024  # measured: more tokens at once are no faster on a processor, and take memory
AS_FAST = 1.02  # within 2 % the simpler one is taken: no prediction is that sharp
ROOMY = 0.9
DEGREES = ("tensor", "pipeline", "sequence")
Factors = Mapping[str, float]  # what calibration multiplies predictions by


@dataclass(frozen=True)
class Setting:
    """What a plan is made for."""

    size: ModelSize
    cluster: Cluster
    processes: int
    factors: Factors

    @property
    def gpu(self) -> bool:
        """True where the ranks have GPUs."""
        return bool(self.cluster.hardware.gpus)

    @property
    def facts(self) -> Facts:
        """What the table of combinations asks of machine and model."""
        size = self.size
        key_heads = size.heads if size.query_heads else 0
        return Facts(self.gpu, self.processes, size.query_heads, key_heads, size.layers, size.model_type)


@dataclass(frozen=True)
class Candidate:
    """A job without `auto`, and what it is predicted to take. `short` are the bytes that it lacks, by place."""

    job: TrainingJob
    memory: Memory
    speed: Speed
    short: Mapping[str, float]
    room: float  # bytes of a rank's device

    @property
    def tight(self) -> bool:
        """True where less than a tenth of the device is left."""
        return self.memory.device.total > self.room * ROOMY

    @property
    def fits(self) -> bool:
        """True where every place has room."""
        return not self.short

    @property
    def simplicity(self) -> tuple[int, ...]:
        """Smaller is simpler: with room to spare, no degree above 1, nothing offloaded, a low stage, nothing twice."""
        strategy, offload = self.job.strategy, self.job.strategy.offload
        away = (offload.optimizer, offload.parameters)
        order = {"none": 0, "cpu": 1, "nvme": 3}
        recompute = int(strategy.recompute == "layers")
        away_count = sum(order.get(place, 0) for place in away)
        return (int(self.tight), inner_of(self.job), away_count, int(strategy.zero), recompute)

    @property
    def words(self) -> str:
        """The strategy in a few words."""
        strategy, offload = self.job.strategy, self.job.strategy.offload
        parts = [f"ZeRO {strategy.zero}"]
        places = {"optimizer": offload.optimizer, "parameters": offload.parameters}
        parts += [f"{what} on {place}" for what, place in places.items() if place in ("cpu", "nvme")]
        parts += [f"{name} {degree}" for name in DEGREES if (degree := getattr(strategy, name)) not in ("auto", 1)]
        parts += ["recompute layers"] if strategy.recompute == "layers" else []
        return ", ".join([*parts, f"micro {self.job.batch.micro}"])


def check_limits(job: TrainingJob, setting: Setting) -> None:
    """Nothing, or UserError for what the job asks of the machine or the model that it cannot do."""
    for key, said in limits(job, setting.facts):
        raise UserError(said, key)


def ranked(job: TrainingJob, setting: Setting) -> list[Candidate]:
    """All that the job leaves open: what fits first, the fastest first; of equally fast ones the simplest.

    What does not fit comes last, what lacks least first. UserError where nothing that is left goes together.
    """
    found = [candidate for plain in _strategies(job, setting) for candidate in [_with_micro(plain, job, setting)]]
    if not any(one.fits for one in found) and setting.gpu:
        found += [_with_micro(spread, job, setting) for spread in _spread(job, setting)]
    if not found:
        raise UserError(_what_clashes(job, setting), "strategy", "leave one of the two to auto")
    return order(found)


def order(found: Iterable[Candidate]) -> list[Candidate]:
    """Best first."""
    found = list(found)
    fitting = sorted((one for one in found if one.fits), key=lambda one: (one.speed.seconds, one.simplicity))
    others = [one for one in found if not one.fits]
    others.sort(key=lambda one: (round(sum(one.short.values()) / 2**20), one.simplicity))
    if not fitting:
        return others
    limit = fitting[0].speed.seconds * AS_FAST
    best = min((one for one in fitting if one.speed.seconds <= limit), key=lambda one: one.simplicity)
    return [best, *(one for one in fitting if one is not best), *others]


def evaluate(job: TrainingJob, setting: Setting) -> Candidate:
    """A job without `auto`, and what it takes."""
    cluster, processes = setting.cluster, setting.processes
    memory = peak(job, setting.size, processes, gpu=setting.gpu)
    memory = replace(memory, device=memory.device.scaled(setting.factors))
    speed = step_speed(job, setting.size, cluster, processes)
    slower = 1 / setting.factors.get("speed", 1.0)
    speed = replace(speed, compute=speed.compute * slower, links=speed.links * slower, offload=speed.offload * slower)
    return Candidate(job, memory, speed, _short(job, memory, setting), room_bytes(setting))


def _short(job: TrainingJob, memory: Memory, setting: Setting) -> dict[str, float]:
    """The bytes that are lacking, by place."""
    cluster, ranks = setting.cluster, max(1, setting.processes // setting.cluster.nodes)
    room = room_bytes(setting)
    lacking = {"device": memory.device.total - room}
    if not setting.gpu and setting.processes > 1:
        # the other half of a processor's share is for what no formula sees: malloc keeps what was freed
        state = state_bytes(job, setting.size, str(job.strategy.precision), int(job.strategy.zero), setting.processes)
        lacking["device"] = max(lacking["device"], state - room / 2)
    lacking["host"] = memory.host.total * ranks - cluster.hardware.memory_gib * GIB * USABLE
    if cluster.nvme_gib:
        lacking["nvme"] = memory.nvme * ranks - cluster.nvme_gib * GIB
    return {place: count for place, count in lacking.items() if count > 0}


def room_bytes(setting: Setting) -> float:
    """Of a rank's device; on a GPU all of it, because the parts hold an allowance for what no formula sees."""
    hardware = setting.cluster.hardware
    if hardware.gpus:
        return hardware.gpus[0][1] * GIB
    return device_bytes(hardware, max(1, setting.processes // setting.cluster.nodes))


def _with_micro(job: TrainingJob, asked: TrainingJob, setting: Setting) -> Candidate:
    """The most rows at once that fit, evenly spread over the micro-batches; one where none fits."""
    if asked.batch.micro != "auto":
        return evaluate(job, setting)
    most = max(1, rows_a_step(job) // max(1, setting.processes // inner_of(job)))
    if not setting.gpu:
        most = min(most, max(1, CPU_MICRO_TOKENS // job.row_tokens))
    low, high = 1, most  # memory grows with the rows
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if evaluate(at(job, middle), setting).fits else (low, middle - 1)
    return evaluate(at(job, math.ceil(most / math.ceil(most / low))), setting)


def at(job: TrainingJob, micro: int) -> TrainingJob:
    """The job with so many rows at once."""
    return job.model_copy(update={"batch": job.batch.model_copy(update={"micro": micro})})


def _strategies(job: TrainingJob, setting: Setting) -> Iterator[TrainingJob]:
    """Stages, places and recomputation, with nothing spread beyond data, and no two settings that clash."""
    asked, offload = job.strategy, job.strategy.offload
    alone = {name: 1 for name in DEGREES if getattr(asked, name) == "auto"}
    optimizers, parameters = (
        _places(job, setting) if place == "auto" else [place] for place in (offload.optimizer, offload.parameters)
    )
    recompute = ("none", "layers") if asked.recompute == "auto" else (asked.recompute,)
    for zero, optimizer, place, again in itertools.product(stages(job, setting), optimizers, parameters, recompute):
        if offload.optimizer == offload.parameters == "auto" and (optimizer, place) in (("none", "cpu"),):
            continue  # whoever has no room for weights has none for four times as much state
        where = offload.model_copy(update={"optimizer": optimizer, "parameters": place})
        update: dict[str, Any] = {"zero": zero, "recompute": again, "offload": where, **alone}
        made = job.model_copy(update={"strategy": asked.model_copy(update=update)})
        if not any(clashes(made)) and not any(limits(made, setting.facts)):
            yield made


def _places(job: TrainingJob, setting: Setting) -> list[Any]:
    """Where state may wait: nowhere, in host memory beside a GPU, and on a fast disk that the job names."""
    if not setting.gpu:
        return ["none"]
    return ["none", "cpu", "nvme"] if job.strategy.offload.path is not None else ["none", "cpu"]


def stages(job: TrainingJob, setting: Setting) -> Sequence[int]:
    """The stages that are worth a look: 0 in one process alone, where there is nobody to share with."""
    if job.strategy.zero != "auto":
        return (job.strategy.zero,)
    if setting.processes == 1 and not setting.gpu:
        return (0,) if job.strategy.precision == "fp32" else (1,)
    if setting.processes == 1:
        return (0, 1, 3) if job.strategy.precision == "fp32" else (1, 3)
    return (1, 2, 3)


def _spread(job: TrainingJob, setting: Setting) -> Iterator[TrainingJob]:
    """The same with one further axis, where the job leaves it open and the model is known to give the same."""
    if setting.size.model_type not in SPLIT_ARCHITECTURES:
        return
    for name in (name for name in DEGREES if getattr(job.strategy, name) == "auto"):
        degree = 2
        while degree <= setting.processes:
            strategy = job.strategy.model_copy(update={name: degree})
            yield from _strategies(job.model_copy(update={"strategy": strategy}), setting)
            degree *= 2


def _what_clashes(job: TrainingJob, setting: Setting) -> str:
    """The first reason why no strategy is left."""
    strategy = job.strategy.model_copy(update={"zero": stages(job, setting)[-1]})
    made = job.model_copy(update={"strategy": strategy})
    reasons = [*clashes(made), *(said for _, said in limits(made, setting.facts))]
    return reasons[0] if reasons else "nothing that is left to choose goes together"
