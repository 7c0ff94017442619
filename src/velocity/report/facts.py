"""What a run's folder says of it, as plain values. It knows no picture and no page.

Whatever may be absent, torn or of a later version is taken as absent: a report is made of what there is.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from velocity.config.resolved import is_resolved
from velocity.distributed import failure
from velocity.errors import UserError
from velocity.runs.folder import RunFolder
from velocity.runs.opened import status_of

LOG_TAIL_BYTES = 4096
STAMP = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)  ", re.MULTILINE)


@dataclass(frozen=True)
class Setting:
    """One value of a configuration, and where it came from."""

    key: str
    value: str
    origin: str


@dataclass(frozen=True)
class Failed:
    """Why a run failed: its message, the trace behind it, and which rank and step it was."""

    what: str
    trace: str = ""
    place: str = ""


@dataclass(frozen=True)
class Run:
    """One run. `label` is what tells it from the others on its page."""

    folder: Path
    label: str
    path: str  # as its user wrote it
    job: Mapping[str, Any]
    status: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]
    plan: Mapping[str, Any]
    environment: Mapping[str, Any]
    settings: Sequence[Setting]
    engine_settings: Sequence[Setting]
    evaluation: Mapping[str, Any]
    failed: Failed | None
    restarts: Sequence[float | None]  # of each restart the step that it was lost at
    seconds: float | None  # since the run was last started
    steps: Sequence[Mapping[str, Any]] = field(default=())  # the lines of training steps

    @property
    def task(self) -> str:
        """`sft`, `generate`, …"""
        return str(self.job.get("task", ""))

    @property
    def model(self) -> str:
        """What the run started from, or measured."""
        return str(mapping(self.job.get("model")).get("path", ""))

    @property
    def rows(self) -> list[Mapping[str, Any]]:
        """The lines that tell of rows answered or scored; their steps go on from one set to the next."""
        told: list[Mapping[str, Any]] = []
        before = last = 0
        for line in self.lines:
            if "rows_per_second" in line and isinstance(line.get("step"), int):
                before += last if line["step"] < last else 0
                last = line["step"]
                told.append({**line, "step": before + last})
        return told

    @property
    def state(self) -> str:
        """`complete`, `running`, …"""
        return str(self.status.get("state", "new"))


def read_run(path: Path, *, label: str = "", shown_as: str = "", here: bool = True) -> Run:
    """The run in the folder; UserError where there is none. `here`: its writer is on this machine."""
    folder = RunFolder(path)
    if not is_resolved(folder.job):
        raise UserError("not a run folder: it has no job.yaml of a run", str(path), "give the output folder of a job")
    text = folder.job.read_text("utf-8")
    status = status_of(folder) if here else folder.status()
    lines = [line for line in folder.lines() if isinstance(line, dict)]
    return Run(
        folder=folder.path,
        label=label or folder.path.name,
        path=shown_as or str(path),
        job=mapping(_yaml(text)),
        status=status,
        lines=lines,
        plan=read_json(folder.plan),
        environment=read_json(folder.environment),
        settings=settings_of(text),
        engine_settings=_engine_settings(folder),
        evaluation=read_json(folder.evaluation),
        failed=_failed(folder, status),
        restarts=_restarts(folder.failures),
        seconds=_seconds(folder, status, lines),
        steps=[line for line in lines if "loss" in line],
    )


def read_json(path: Path) -> Mapping[str, Any]:
    """The mapping that a file holds; an empty one where it is absent, torn, or something else."""
    if not path.is_file():  # a pipe would be waited for, for ever
        return {}
    try:
        return mapping(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError):
        return {}


def settings_of(text: str) -> list[Setting]:
    """The leaves of a resolved job, as `config/resolved.py` writes it: `key: value  # origin`."""
    found: list[Setting] = []
    open_: list[tuple[int, str]] = []  # the keys around a line, each with its indentation
    items: dict[str, int] = {}
    for line in text.splitlines():
        body = line.lstrip(" ")
        if not body or body.startswith("#"):
            continue
        indent = len(line) - len(body)
        while open_ and open_[-1][0] >= indent:
            open_.pop()
        around = open_[-1][1] if open_ else ""
        if body.startswith("- "):
            items[around] = items.get(around, -1) + 1
            open_.append((indent, f"{around}.{items[around]}"))
            around, body, indent = open_[-1][1], body[2:], indent + 2
        key, value, origin = _leaf(body)
        path = f"{around}.{key}".strip(".")
        if value is None:
            open_.append((indent, path))
        else:
            found.append(Setting(path, value, origin))
    return found


def _leaf(body: str) -> tuple[str, str | None, str]:
    """Key, value and origin of a line; the value is None where the line opens a section."""
    for split in re.finditer(r":(?: |$)", body):
        key, rest = body[: split.start()].strip("'\""), body[split.end() :]
        if not rest:
            return key, None, ""
        try:
            value, end = json.JSONDecoder().raw_decode(rest)
        except ValueError:
            continue
        return key, _plain(value), rest[end:].removeprefix("  # ")
    return body, "", ""


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _engine_settings(folder: RunFolder) -> list[Setting]:
    origins = read_json(folder.deepspeed_origins)
    return [Setting(key, _plain(value), str(origins.get(key, ""))) for key, value in _flat(read_json(folder.deepspeed))]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for name, value in tree.items():
        key = f"{prefix}{name}"
        leaves += _flat(value, f"{key}.") if isinstance(value, dict) and value else [(key, value)]
    return leaves


def _failed(folder: RunFolder, status: Mapping[str, Any]) -> Failed | None:
    try:
        cause = failure.cause(folder.failures)
    except (OSError, ValueError, KeyError, TypeError):
        cause = None
    if cause is not None:
        step = "" if cause.get("step") is None else f", step {cause['step']}"
        return Failed(str(cause["what"]), str(cause.get("trace", "")), f"rank {cause['rank']} on {cause['host']}{step}")
    if status.get("state") == "failed":
        return Failed(str(status.get("cause") or "no rank could say why"))
    return None


def _restarts(failures: Path) -> list[float | None]:
    """For each attempt that was followed by another one, the step that it was lost at, as far as a rank knew it."""
    steps: list[float | None] = []
    for attempt in sorted(failures.glob("attempt-*")):
        said = [read_json(file).get("step") for file in attempt.glob("rank-*.json")]
        steps.append(max((step for step in said if isinstance(step, int)), default=None))
    return steps


def _seconds(folder: RunFolder, status: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> float | None:
    """From the last start to the last line of the log, or to now while it runs; else what its lines add up to."""
    started = status.get("started")
    if isinstance(started, int | float):
        ended = time.time() if status["state"] == "running" else _last_stamp(folder.log)
        if ended is not None and ended >= int(started):
            return ended - started
    busy = [line["seconds"] for line in lines if isinstance(line.get("seconds"), int | float)]
    return sum(busy) if busy else None


def _last_stamp(log: Path) -> float | None:
    """When the log's last line was written, in seconds since 1970."""
    if not log.is_file():
        return None
    try:
        with log.open("rb") as stream:
            stream.seek(max(log.stat().st_size - LOG_TAIL_BYTES, 0))
            stamps = STAMP.findall(stream.read().decode("utf-8", "replace"))
        return time.mktime(time.strptime(stamps[-1], "%Y-%m-%d %H:%M:%S")) + 1
    except (OSError, ValueError, IndexError, OverflowError):
        return None


def read_lines(path: Path) -> Iterator[Mapping[str, Any]]:
    """The mappings of a file, one a line; lines that are none are left out, and so is a file that cannot be read."""
    if not path.is_file():
        return
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            for line in stream:
                try:
                    value = json.loads(line)
                except ValueError:
                    continue
                if isinstance(value, dict):
                    yield value
    except OSError:
        return


def _yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return {}


def mapping(value: Any) -> Mapping[str, Any]:
    """The value where it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}
