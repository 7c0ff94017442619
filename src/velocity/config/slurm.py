"""A launch section for Slurm: how it writes a time limit, and which options of sbatch are a user's to give."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt, model_validator

from velocity.config.sections import one_to_list, seconds_of
from velocity.config.target import NodesConfig

Line = Annotated[str, Field(pattern=r"^[^\n\r]+$")]  # cannot become two in a script
TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
NO_LIMIT = ("unlimited", "infinite")
# Options that the script is built on, and what to do in their place.
OURS = {
    **dict.fromkeys(("nodes", "N"), "use launch.nodes"),
    **dict.fromkeys(("time", "t"), "use launch.time"),
    **dict.fromkeys(("cpus-per-task", "c"), "use launch.cpus_per_node"),
    **dict.fromkeys(("ntasks", "n", "ntasks-per-node"), "use launch.processes, which counts ranks"),
    **dict.fromkeys(("requeue", "no-requeue"), "use launch.requeue"),
    "signal": "use launch.warning_seconds",
    **dict.fromkeys(("output", "o", "error", "e", "open-mode", "job-name", "J"), "velocity logs finds the job by it"),
    **dict.fromkeys(("array", "a", "wrap", "wait", "W", "parsable", "test-only"), "leave it out"),
}


def checked_time(value: Any) -> Any:
    """The value, where it is a limit or none at all; else ValueError."""
    if isinstance(value, (int, float)):  # of 12:00:00 YAML makes 43200, which Slurm would take for minutes
        raise ValueError("a number says no unit, and YAML reads 12:00:00 as one; write 12h, or '12:00:00' in quotes")
    if isinstance(value, str):
        seconds(value)
    return value


def seconds(time: str) -> float | None:
    """Of a limit as Slurm writes it (90, which are minutes, 90:00, 12:00:00, 2-12), or of 12h, 2d. None: without end.

    ValueError where it is neither.
    """
    found = TIME.fullmatch(time)
    if time.lower() in NO_LIMIT:
        return None
    if found is None:
        try:
            return seconds_of(time)
        except ValueError:
            raise ValueError("not a time; write 12h, 1h30m or 2d, or as Slurm does: '12:00:00', 2-00:00:00") from None
    days, *parts = found.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is None and len(numbers) < 3:
        numbers = [0, *numbers]  # minutes come first
    hours, minutes, rest = [*numbers, 0, 0][:3]
    return float(((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + rest)


def as_slurm(time: str) -> str:
    """The limit as Slurm writes it."""
    limit = seconds(time)
    if limit is None or TIME.fullmatch(time):
        return time
    minutes, rest = divmod(round(limit), 60)
    days, minutes = divmod(minutes, 24 * 60)
    return f"{days}-{minutes // 60:02}:{minutes % 60:02}:{rest:02}"


def checked_options(options: tuple[str, ...]) -> tuple[str, ...]:
    """The options, where each is one of sbatch's and none of ours; else ValueError."""
    for option in options:
        if not re.fullmatch(r"--?[A-Za-z][^\n\r]*", option):
            raise ValueError(f"{option!r} is no option of sbatch; such as --exclude=node-7, one an item of the list")
        name = re.split(r"[=\s]", option.lstrip("-"))[0]
        name = name if option.startswith("--") else name[0]
        if name in OURS:
            raise ValueError(f"{option} is Velocity's to set; {OURS[name]}")
    return options


Time = Annotated[Line, BeforeValidator(checked_time)]
Options = Annotated[
    tuple[str, ...],
    BeforeValidator(one_to_list, json_schema_input_type=str | list[str]),
    AfterValidator(checked_options),
]


class SlurmConfig(NodesConfig):
    """A Slurm cluster, from a machine that has its sbatch."""

    kind: Literal["slurm"] = "slurm"
    partition: Line | None = Field(None, description="the cluster's default one, if left out")
    account: Line | None = Field(None, description="that pays for it")
    qos: Line | None = Field(None, description="the quality of service, where the cluster has some")
    time: Time | None = Field(None, description="the limit, such as 12h, or as Slurm writes it: '12:00:00', in quotes")
    gpus_per_node: PositiveInt | None = Field(None, description="left out: none are reserved")
    cpus_per_node: PositiveInt | None = Field(None, description="left out: what the cluster gives, often a single one")
    memory: Line | None = Field(None, description="of a node, as Slurm writes it, such as 200G")
    constraint: Line | None = Field(None, description="features that nodes must have, such as h100&ib")
    options: Options = Field((), description="further options of sbatch, such as --exclude=node-7")
    setup: str | None = Field(None, description="shell lines before the job, such as module load cuda")
    python: Line | None = Field(None, description="the Python that has Velocity, on every node; ours, if left out")
    warning_seconds: Annotated[int, Field(gt=0, le=65535)] = Field(
        300, description="so long before the limit the job saves"
    )
    requeue: bool = Field(True, description="then it goes back into the queue, and goes on from there")

    @model_validator(mode="after")
    def _has_time_to_work(self) -> SlurmConfig:
        limit = None if self.time is None else seconds(self.time)
        if limit is not None and self.warning_seconds >= limit:
            what = f"warning_seconds={self.warning_seconds} leaves nothing of time={self.time} to work in"
            raise ValueError(f"{what}; a longer time, or a shorter warning")
        return self
