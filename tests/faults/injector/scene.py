"""A small job in a folder of its own, started as a user starts it: what it is doing, and how each attempt ended.

What a run does is seen from outside alone: by its folder, by what its ranks say they are doing, by its processes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.commands import processes_naming, step_lines
from tests.making import write_job, write_jsonl
from tests.running import prepare_folder, ragged_rows
from velocity.checkpoints.commit import MARKER, step_of
from velocity.distributed import pulse
from velocity.distributed.pulse import Place
from velocity.distributed.watchdog import descendants, state_of
from velocity.runs.folder import RunFolder

STEPS, EVERY, KEEP = 14, 2, 2
HANG_SECONDS = 8
PATIENCE_SECONDS = 240.0  # for an attempt
GONE_SECONDS = 15.0  # for what the kernel ends when its parent has died
LOOK_SECONDS = 0.0005
RUNS_SECONDS = 0.0002  # of a process between two looks, where a moment is short

# What a run is doing, as it is seen from outside.
STARTING, TOKENISING, FETCHING, LOADING = "starting", "tokenising", "fetching from the mirror", "loading"
STEP, EVALUATING, SAVING = "a step", "evaluating", "saving"
COMMITTING, PRUNING, MIRRORING = "between rename and marker", "pruning", "mirroring"
WRITING, UNTOLD, ENDED = "writing the model", "model there, run not complete", "leaving"
SHORT = (COMMITTING, PRUNING, MIRRORING, WRITING, UNTOLD)


@dataclass(frozen=True)
class Size:
    """Over how many ranks a run is spread, and how."""

    processes: int
    zero: int

    def __str__(self) -> str:
        return f"{self.processes} rank(s), ZeRO {self.zero}"

    @property
    def overrides(self) -> list[str]:
        return [f"launch.processes={self.processes}", f"strategy.zero={self.zero}"]


@dataclass(frozen=True)
class Ended:
    """An attempt at its end."""

    status: int
    said: str
    left: list[int]  # processes that were still there


@dataclass
class Scene:
    """A job's folders. `base` holds the model and the data that all jobs share."""

    base: Path
    folder: Path
    mirrored: bool = False
    restarts: int = 0
    hang_seconds: float = 1800.0
    disk: Path | None = None  # where the run lies, if not in the folder
    said: list[str] = field(default_factory=list)

    @property
    def run(self) -> RunFolder:
        return RunFolder((self.disk or self.folder) / "run")

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def mirror(self) -> Path:
        return self.folder / "mirror"

    def write(self) -> Path:
        """The job file."""
        return write_job(
            self.folder / "job.yaml",
            model=str(self.base / "model"),
            output=str(self.run.path),
            optimizer={"kind": "adamw", "learning_rate": 1e-3, "warmup": 0.1},
            duration={"steps": STEPS},
            checkpoint={
                "every": EVERY,
                "keep": KEEP,
                "background": True,
                "mirror": str(self.mirror) if self.mirrored else None,
            },
            strategy={"zero": 2, "precision": "fp32"},
            launch={"processes": 2, "max_restarts": self.restarts, "hang_seconds": self.hang_seconds},
            batch={"rows": 8, "micro": 2},
            data={
                "train": str(self.base / "train.jsonl"),
                "eval": str(self.base / "eval.jsonl"),
                "eval_every": 3,
                "processes": 2,
                "cache": str(self.cache),
            },
        )

    def attempt(self, size: Size, disturb: Callable[[Attempt], None] | None = None, *options: str) -> Ended:
        """The command has run, disturbed, to its end; all that it started is gone, or is in what comes back."""
        temporary, said = self.folder / "tmp", self.folder / f"said-{len(self.said)}.txt"
        temporary.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "velocity", "run", str(self.write()), *size.overrides, *options]
        with said.open("w") as stream:
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=stream, start_new_session=True,
                env={**os.environ, "TMPDIR": str(temporary)},
            )  # fmt: skip
        attempt = Attempt(self, process)
        try:
            if disturb is not None:
                disturb(attempt)
            attempt.wait()
        finally:
            attempt.end()
        self.said.append(said.read_text(errors="replace"))
        return Ended(process.returncode, self.said[-1], self._left())

    def _left(self) -> list[int]:
        deadline = time.monotonic() + GONE_SECONDS
        while (left := processes_naming(str(self.folder))) and time.monotonic() < deadline:
            time.sleep(0.05)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return left

    def steps(self) -> int:
        """Steps that metrics.jsonl tells of."""
        lines = step_lines(self.run.path)
        return int(lines[-1]["step"]) if lines else 0


def prepare(base: Path) -> None:
    """The folder holds what all jobs share; the data are enough that tokenising takes a moment."""
    prepare_folder(base)
    write_jsonl(base / "train.jsonl", ragged_rows(4000))
    write_jsonl(base / "eval.jsonl", ragged_rows(30))


class Attempt:
    """A command that runs."""

    def __init__(self, scene: Scene, process: subprocess.Popen[bytes]) -> None:
        self.scene, self.process = scene, process
        self._old = {path: _changed(path) for path in _unfinished(scene)}  # what an earlier attempt left
        self._known: set[int] = {process.pid}

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def processes(self) -> list[int]:
        """The command, and all that it started, parents first."""
        return descendants(self.process.pid) if self.alive else []

    def node(self) -> int | None:
        return next((pid for pid in self.processes() if "velocity.distributed.node" in _command(pid)), None)

    def ranks(self) -> dict[int, dict[str, Any]]:
        """What each rank says that it is doing."""
        found = {}
        for file in sorted(self.scene.run.failures.glob("doing-*.json")):
            doing = pulse.read(file)
            if doing and str(self.scene.run.path) in _command(doing["pid"]):
                found[int(doing["rank"])] = doing
        return found

    def phase(self) -> str:
        """What the run is doing; the shortest thing counts where it does several."""
        ranks, run = self.ranks(), self.scene.run
        fresh = [path for path in _unfinished(self.scene) if self._old.get(path) != _changed(path)]
        if not ranks:
            return self._without_ranks(fresh)
        doing = ranks.get(0) or next(iter(ranks.values()))
        if torn := _torn(run.checkpoints, fresh):
            return torn
        if doing["what"] == "writing the model":
            return UNTOLD if run.model.is_dir() else WRITING
        if doing["what"] == "sending to the mirror" or _any_in(fresh, self.scene.mirror):
            return MIRRORING
        if doing["place"] == Place.SAVES or _any_in(fresh, run.checkpoints):
            return SAVING
        return LOADING if doing["step"] is None else EVALUATING if doing["place"] == Place.EVALUATES else STEP

    def _without_ranks(self, fresh: list[Path]) -> str:
        if _any_in(fresh, self.scene.cache):
            return TOKENISING
        if _any_in(fresh, self.scene.run.checkpoints):
            return FETCHING
        return LOADING if self.node() else self._before_or_behind()

    def _before_or_behind(self) -> str:
        return ENDED if self.scene.run.status()["state"] == "complete" else STARTING

    def reach(self, phase: str, steps: int) -> bool:
        """True once it does that, so many steps on; False where it ended before."""
        before = self.scene.steps()
        while self.alive and phase not in (STARTING, TOKENISING, FETCHING, LOADING) and steps > 0:
            done = self.scene.steps()
            if done >= before + steps or done >= STEPS:
                break
            before = min(before, done)  # wound back
            time.sleep(LOOK_SECONDS)
        while self.alive:
            if phase in SHORT and self._is_near(phase):
                if self._creep(lambda: self.phase() == phase, lambda: self._is_near(phase)):
                    return True
            elif self.phase() == phase:
                return True
            time.sleep(LOOK_SECONDS)
        return False

    def _is_near(self, phase: str) -> bool:
        """True where the next that the first rank does may be that."""
        run = self.scene.run
        if phase == COMMITTING:
            return any((path / "state.json").exists() for path in _unfinished(self.scene) if path.name.endswith(".tmp"))
        if phase == PRUNING:
            return len(list(run.checkpoints.glob(f"step-*/{MARKER}"))) > KEEP or self.phase() == PRUNING
        doing = self.ranks().get(0)
        if phase == MIRRORING:
            return doing is not None and any((run.checkpoints / f".mirror.{doing['host']}").glob("step-*"))
        return doing is not None and doing["what"] == "writing the model"

    def _creep(self, reached: Callable[[], bool], near: Callable[[], bool]) -> bool:
        """True where the first rank stands still and has `reached` it; False where it is no longer `near`."""
        rank = self.ranks().get(0)
        while rank is not None and self.alive:
            if not stop(rank["pid"]):
                return False
            if reached():
                return True
            go_on(rank["pid"])
            if not near():
                return False
            end = time.perf_counter() + RUNS_SECONDS
            while time.perf_counter() < end:
                pass
        return False

    def stand_still(self) -> list[int]:
        """All of its processes are stopped, and what comes back are they."""
        known: list[int] = []
        while new := [pid for pid in self.processes() if pid not in known]:
            known += [pid for pid in new if stop(pid)] or new
        return known

    def wait(self) -> None:
        """It has ended, or PATIENCE_SECONDS are over."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(PATIENCE_SECONDS)

    def end(self) -> None:
        """It is killed if it runs."""
        for pid in reversed(self.processes()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def stop(pid: int) -> bool:
    """The process stands still; False where it has ended."""
    try:
        os.kill(pid, signal.SIGSTOP)
    except ProcessLookupError:
        return False
    deadline = time.perf_counter() + 0.5  # it may be within a call that cannot be interrupted
    while (state := state_of(pid)) not in ("T", "Z", "") and time.perf_counter() < deadline:
        pass
    return state not in ("Z", "")


def go_on(pid: int) -> None:
    """The process that was stopped goes on."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _unfinished(scene: Scene) -> list[Path]:
    """Folders that are being written or removed, or that an attempt which was killed left so."""
    return [path for path in _candidates(scene) if path.name.startswith(".") or not (path / MARKER).exists()]


def _candidates(scene: Scene) -> Iterator[Path]:
    for folder, patterns in (
        (scene.run.checkpoints, (".step-*.tmp", "step-*")),
        (scene.mirror, ("step-*",)),
        (scene.cache / "sequences", (".*.tmp",)),
    ):
        for pattern in patterns:
            with contextlib.suppress(OSError):
                yield from folder.glob(pattern)


def _any_in(paths: list[Path], folder: Path) -> bool:
    return any(path.is_relative_to(folder) for path in paths)


def _torn(checkpoints: Path, fresh: list[Path]) -> str:
    """Whether a checkpoint without a marker is on its way to be one, or to be none; empty where all have theirs."""
    torn = [path for path in fresh if path.parent == checkpoints and not path.name.startswith(".")]
    newest = max((step_of(marker.parent) for marker in checkpoints.glob(f"step-*/{MARKER}")), default=-1)
    steps = [step_of(path) for path in torn if path.exists()]
    if not steps:
        return ""
    return COMMITTING if max(steps) > newest else PRUNING


def forget(folder: Path) -> None:
    """The folder is gone."""
    shutil.rmtree(folder, ignore_errors=True)


def beside(scene: Scene, name: str) -> Scene:
    """A scene of the same kind, in a folder beside it."""
    return replace(scene, folder=scene.folder.with_name(name), said=[])
