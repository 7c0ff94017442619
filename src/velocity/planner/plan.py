"""Every `auto` of a training job becomes a value, with the reason. It reads config.json and file sizes, no weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from velocity.config.job import LoadedJob
from velocity.config.training import TrainingJob
from velocity.planner import calibration
from velocity.planner.candidates import Candidate, Setting, at, check_limits, evaluate, order, ranked, room_bytes
from velocity.planner.device import USABLE, Precision, choose_precision, choose_processes
from velocity.planner.hardware import GIB, Hardware
from velocity.planner.machines import Cluster
from velocity.planner.memory import saved_bytes
from velocity.planner.size import model_size

Zero = Literal[0, 1, 2, 3]
BACKGROUND = "checkpoint.background"
UNKNOWN = "the model's size is not known yet"
THRIFTIER = 0.9  # of the memory of the plan that ran out: less of a difference would not help


@dataclass(frozen=True)
class Plan:
    """The job without an `auto`, the candidates it was chosen from, best first, and what they were judged by.

    `candidates` is empty where the model's size is not known yet.
    """

    loaded: LoadedJob[TrainingJob]
    setting: Setting | None
    candidates: tuple[Candidate, ...] = ()
    calibrated: str = ""

    @property
    def chosen(self) -> Candidate | None:
        """The one that the job was settled by."""
        return self.candidates[0] if self.candidates else None


def resolve(loaded: LoadedJob[TrainingJob], cluster: Cluster, model_folder: Path) -> LoadedJob[TrainingJob]:
    """The job without an `auto` that a plan decides; the origin of what was chosen reads `planner: reason`."""
    return plan_job(loaded, cluster, model_folder).loaded


def plan_job(loaded: LoadedJob[TrainingJob], cluster: Cluster, model_folder: Path) -> Plan:
    """The plan of a job on these machines; UserError for what was asked for and cannot be done there."""
    job = loaded.job
    size = model_size(model_folder)
    processes, why_processes = choose_processes(job, cluster)
    precision, why_precision = _precision(job, cluster.hardware)
    job = _with(job, processes, precision)
    reasons = {"launch.processes": why_processes, "strategy.precision": why_precision}
    if size is None:
        careful = _saving(_careful(job), background=False)
        reasons[BACKGROUND] = UNKNOWN if loaded.job.checkpoint.background == "auto" else ""
        return Plan(_settled(loaded, careful, {**reasons, **_reasons(loaded.job, UNKNOWN)}), None)
    factors = calibration.read(calibration.place(job), cluster.kind)
    setting = Setting(size, cluster, processes, factors)
    check_limits(job, setting)
    found = tuple(ranked(job, setting))
    reasons |= _reasons(loaded.job, _why(found[0], setting))
    chosen, reasons[BACKGROUND] = _with_saving(found[0], setting)
    said = f"calibrated by runs on {cluster.kind}" if factors else ""
    return Plan(_settled(loaded, chosen, reasons), setting, found, said)


def thriftier(loaded: LoadedJob[TrainingJob], cluster: Cluster, model_folder: Path) -> LoadedJob[TrainingJob] | None:
    """The next plan of the job after memory ran out under the one of `resolve`: the fastest that needs a tenth less.

    `loaded` is the job as it was given, its `auto` included. None where it leaves nothing open that would help.
    """
    plan = plan_job(loaded, cluster, model_folder)
    if plan.chosen is None or plan.setting is None:
        return None
    first, setting = plan.chosen, plan.setting
    others = list(plan.candidates[1:])
    if loaded.job.batch.micro == "auto":
        others += _halved(plan.candidates, setting)
    most = first.memory.device.total * THRIFTIER
    best = _best(others, most)
    if best is None:
        return None
    why = f"memory ran out with {first.words}; the next thriftier plan. {_why(best, setting)}"
    choices = {"launch.processes": "as before", "strategy.precision": "as before", **_reasons(loaded.job, why)}
    chosen, choices[BACKGROUND] = _with_saving(best, setting)
    choices = {key: why for key, why in choices.items() if _asked(loaded.job, key) == "auto"}
    return _settled(loaded, chosen, choices)


def roomier(loaded: LoadedJob[TrainingJob], cluster: Cluster, model_folder: Path) -> str | None:
    """What to set after memory ran out under a job without `auto`, as far as the planner knows.

    It looks at all that the job could leave open; None where the model's size is not known.
    """
    job, size = loaded.job, model_size(model_folder)
    if size is None:
        return None
    setting = Setting(size, cluster, int(job.launch.processes), calibration.read(calibration.place(job), cluster.kind))
    offload = job.strategy.offload.model_copy(update={"optimizer": "auto", "parameters": "auto"})
    left = dict.fromkeys(("zero", "recompute", "tensor", "pipeline", "sequence"), "auto") | {"offload": offload}
    batch = job.batch.model_copy(update={"micro": "auto"})
    opened = job.model_copy(update={"strategy": job.strategy.model_copy(update=left), "batch": batch})
    found = ranked(opened, setting)
    best = _best([*found, *_halved(found, setting)], evaluate(job, setting).memory.device.total * THRIFTIER)
    if best is None or not best.fits:
        return "no strategy would fit: a smaller data.sequence_length, more processes, or more memory"
    changed = [f"{key}={_asked(best.job, key)}" for key in CHOSEN if _asked(best.job, key) != _asked(job, key)]
    return f"{best.words} would fit: the same command with {' '.join(changed)}"


def _halved(candidates: Sequence[Candidate], setting: Setting) -> list[Candidate]:
    """The same with half as many rows at once."""
    halves = [at(one.job, int(one.job.batch.micro) // 2) for one in candidates if int(one.job.batch.micro) > 1]
    return [evaluate(job, setting) for job in halves]


def _best(found: Sequence[Candidate], most: float) -> Candidate | None:
    """The best of those that need no more bytes of a device than that."""
    helping = [one for one in found if one.memory.device.total <= most and "host" not in one.short]
    return order(helping)[0] if helping else None


def _with(job: TrainingJob, processes: int, precision: Precision) -> TrainingJob:
    """The job with its processes and its precision decided."""
    return job.model_copy(
        update={
            "strategy": job.strategy.model_copy(update={"precision": precision}),
            "launch": job.launch.model_copy(update={"processes": processes}),
        }
    )


def _precision(job: TrainingJob, hardware: Hardware) -> tuple[Precision, str]:
    if job.strategy.precision == "auto" and job.strategy.zero == 0:
        return "fp32", "zero: 0 is for fp32; with zero: 1 the planner may choose 16 bit"
    precision, why = choose_precision(job.strategy.precision, hardware)
    return precision, f"{why}; master weights stay in fp32" if why and precision != "fp32" else why


def _with_saving(candidate: Candidate, setting: Setting) -> tuple[TrainingJob, str]:
    """The candidate's job, which writes checkpoints from a copy where host memory has room for it; and why."""
    job, host, hardware = candidate.job, candidate.memory.host.total, setting.cluster.hardware
    if job.checkpoint.background != "auto":
        return job, ""
    room = room_bytes(setting) - candidate.memory.device.total
    if setting.gpu:
        room = hardware.memory_gib * GIB * USABLE / (setting.processes / setting.cluster.nodes) - host
    copy = saved_bytes(job, setting.size, setting.processes)
    why = (
        f"a copy of a rank's state takes {copy / GIB:.1f} GiB of host memory, of {max(room, 0) / GIB:.1f} that are left"
    )
    return _saving(job, background=copy <= room), why


def _saving(job: TrainingJob, *, background: bool) -> TrainingJob:
    if job.checkpoint.background != "auto":
        return job
    return job.model_copy(update={"checkpoint": job.checkpoint.model_copy(update={"background": background})})


def _careful(job: TrainingJob) -> TrainingJob:
    """The job with what fits most models, where the size of this one is not known."""
    asked, offload = job.strategy, job.strategy.offload
    lowest = 0 if asked.precision == "fp32" else 1
    auto: dict[str, Any] = {
        "zero": lowest if job.launch.processes == 1 else 2,
        "recompute": "layers",
        **dict.fromkeys(("tensor", "pipeline", "sequence"), 1),
    }
    update = {name: value for name, value in auto.items() if getattr(asked, name) == "auto"}
    places = {name: "none" for name in ("optimizer", "parameters") if getattr(offload, name) == "auto"}
    update["offload"] = offload.model_copy(update=places)
    made = job.model_copy(update={"strategy": asked.model_copy(update=update)})
    return at(made, 1) if job.batch.micro == "auto" else made


CHOSEN = ("strategy.zero", "strategy.offload.optimizer", "strategy.offload.parameters", "strategy.tensor",
          "strategy.pipeline", "strategy.sequence", "strategy.recompute", "batch.micro")  # fmt: skip


def _reasons(job: TrainingJob, why: str) -> dict[str, str]:
    """The reason, for each key that the job leaves open."""
    return {key: why for key in CHOSEN if _asked(job, key) == "auto"}


def _asked(job: TrainingJob, key: str) -> Any:
    value: Any = job
    for name in key.split("."):
        value = getattr(value, name)
    return value


def _why(candidate: Candidate, setting: Setting) -> str:
    """What decided, in a line."""
    device, room = candidate.memory.device, room_bytes(setting)
    state = device.parameters + device.gradients + device.optimizer
    working = device.total - state
    why = f"{state / GIB:.1f} GiB of model state and {working / GIB:.1f} GiB beside it, of {room / GIB:.1f} GiB a rank"
    return why if candidate.fits else f"{why}: it does not fit, and nothing needs less"


def _settled(loaded: LoadedJob[TrainingJob], job: TrainingJob, choices: Mapping[str, str]) -> LoadedJob[TrainingJob]:
    """The job with the origins of what was chosen."""
    origins = {**loaded.origins, **{key: f"planner: {why}" for key, why in choices.items() if why}}
    return LoadedJob(job, origins, loaded.path)
