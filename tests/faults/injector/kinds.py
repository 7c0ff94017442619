"""The faults, a function each, and the table of them: a new one is a function and a line.

A function breaks something and says what. Those of a `During` get an attempt that runs, and has come to the phase that
was aimed at; those of a `Between` get the folders of a run that was killed.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.faults.injector.scene import (
    COMMITTING,
    EVALUATING,
    FETCHING,
    LOADING,
    MIRRORING,
    PRUNING,
    SAVING,
    STARTING,
    STEP,
    TOKENISING,
    UNTOLD,
    WRITING,
    Attempt,
    Scene,
    forget,
    go_on,
)
from tests.making import flip
from velocity.checkpoints.commit import MANIFEST, MARKER, committed, step_of
from velocity.files import sync

BEFORE_RANKS = (STARTING, TOKENISING, FETCHING)
WITH_RANKS = (LOADING, STEP, EVALUATING, SAVING, COMMITTING, PRUNING, MIRRORING, WRITING, UNTOLD)
ANYWHERE = (*BEFORE_RANKS, *WITH_RANKS)
SMALL_FILE_BYTES = 100_000  # less than a part of a checkpoint, or a model
KILLED = -signal.SIGKILL

Chooser = random.Random


@dataclass(frozen=True)
class Broken:
    """What was done, and what the run was doing then."""

    phase: str
    what: str


@dataclass(frozen=True)
class During:
    """A fault that hits a run."""

    act: Callable[[Attempt, Chooser], Broken | None]  # None where there was nothing left to hit
    phases: tuple[str, ...]
    statuses: tuple[int, ...]  # how the command may end
    said: str = ""  # what it says then, as a regular expression
    on_small_disk: bool = False
    watched: bool = False  # hang_seconds is small


@dataclass(frozen=True)
class Between:
    """A fault that hits what a killed run left; `refused` is what may be said in place of going on."""

    act: Callable[[Scene, Chooser], str | None]
    refused: str = ""
    mirrored: bool = False


def kill_a_rank(attempt: Attempt, choose: Chooser) -> Broken | None:
    """kill -9, as the kernel does where memory is short."""
    return _kill(attempt, lambda: choose.choice([rank["pid"] for rank in attempt.ranks().values()] or [None]), "a rank")


def kill_the_node(attempt: Attempt, choose: Chooser) -> Broken | None:
    return _kill(attempt, attempt.node, "the node")


def kill_the_command(attempt: Attempt, choose: Chooser) -> Broken | None:
    return _kill(attempt, lambda: attempt.process.pid, "the command")


def kill_all(attempt: Attempt, choose: Chooser) -> Broken | None:
    """As where a machine loses its power, but that what was written stays."""
    all_of_it = attempt.stand_still()
    phase = attempt.phase()
    for pid in all_of_it:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return Broken(phase, "all of it") if all_of_it else None


def _kill(attempt: Attempt, victim: Callable[[], int | None], name: str) -> Broken | None:
    """It stands still, so that it is known where the kill lands."""
    all_of_it = attempt.stand_still()
    phase, pid = attempt.phase(), victim()
    if pid is not None:
        os.kill(pid, signal.SIGKILL)
    for other in all_of_it:
        go_on(other)
    return None if pid is None else Broken(phase, name)


def ask_once(attempt: Attempt, choose: Chooser) -> Broken | None:
    return _ask(attempt, [choose.choice([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])])


def ask_twice(attempt: Attempt, choose: Chooser) -> Broken | None:
    return _ask(attempt, [signal.SIGTERM, signal.SIGTERM], choose.uniform(0, 0.3))


def _ask(attempt: Attempt, signals: list[signal.Signals], pause_seconds: float = 0.0) -> Broken | None:
    phase, sent = attempt.phase(), []
    for number in signals:
        if attempt.alive:
            attempt.process.send_signal(number)
            sent.append(number.name)
        for pid in attempt.processes():
            go_on(pid)
        time.sleep(pause_seconds)
    return Broken(phase, " and ".join(sent)) if sent else None


def stop_a_rank(attempt: Attempt, choose: Chooser) -> Broken | None:
    """SIGSTOP: it is there, and does nothing."""
    phase, ranks = attempt.phase(), attempt.ranks()
    for rank in ranks.values():
        go_on(rank["pid"])
    if not ranks:
        return None
    number = choose.choice(sorted(ranks))
    with contextlib.suppress(ProcessLookupError):
        os.kill(ranks[number]["pid"], signal.SIGSTOP)
    return Broken(phase, f"rank {number}")


def suspend_all(attempt: Attempt, choose: Chooser) -> Broken | None:
    """As a laptop that is closed for a while."""
    all_of_it, phase = attempt.stand_still(), attempt.phase()
    time.sleep(choose.uniform(1, 4))
    for pid in all_of_it:
        go_on(pid)
    return Broken(phase, "all of it") if all_of_it else None


def fill_the_disk(attempt: Attempt, choose: Chooser) -> Broken | None:
    """The disk of the run is full but for a little; where none could be mounted no file may grow large."""
    ranks, phase = attempt.ranks(), attempt.phase()
    disk = attempt.scene.disk
    left = choose.choice([0, 16_384, 300_000, 800_000])
    if disk is not None and os.path.ismount(disk):
        fill(disk, left)
    for rank in ranks.values():
        if disk is None or not os.path.ismount(disk):
            left = SMALL_FILE_BYTES
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(rank["pid"], resource.RLIMIT_FSIZE, (left, left))
        go_on(rank["pid"])
    return Broken(phase, f"{left:,} bytes left") if ranks else None


def fill(disk: Path, left: int) -> None:
    """Of the disk so many bytes are free."""
    free = os.statvfs(disk)
    with contextlib.suppress(OSError), (disk / "filler").open("wb") as stream:
        stream.write(bytes(max(0, free.f_bavail * free.f_frsize - left)))


def tear_a_checkpoint(scene: Scene, choose: Chooser) -> str | None:
    return _damage(_newest(scene.run.checkpoints), choose, tear)


def flip_a_checkpoint(scene: Scene, choose: Chooser) -> str | None:
    return _damage(_newest(scene.run.checkpoints), choose, flip_a_bit)


def lose_of_a_checkpoint(scene: Scene, choose: Chooser) -> str | None:
    return _damage(_newest(scene.run.checkpoints), choose, lose)


def tear_the_mirror(scene: Scene, choose: Chooser) -> str | None:
    forget(scene.run.path)
    return _damage(_newest(scene.mirror), choose, tear)


def flip_in_the_mirror(scene: Scene, choose: Chooser) -> str | None:
    forget(scene.run.path)
    return _damage(_newest(scene.mirror), choose, flip_a_bit)


def lose_of_the_mirror(scene: Scene, choose: Chooser) -> str | None:
    forget(scene.run.path)
    return _damage(_newest(scene.mirror), choose, lose)


def lose_the_machine(scene: Scene, choose: Chooser) -> str | None:
    """What is left is the job and its mirror."""
    forget(scene.run.path)
    forget(scene.cache)
    return "run folder and cache"


def tear_the_metrics(scene: Scene, choose: Chooser) -> str | None:
    """The last line is torn, as by a power cut: the steps behind the last checkpoint are not on the disk yet."""
    metrics = scene.run.metrics
    if not metrics.is_file() or not (content := metrics.read_bytes()):
        return None
    saved = max(map(step_of, committed(scene.run.checkpoints)), default=0)
    lines = content.splitlines(keepends=True)
    if f'{{"step": {saved}, '.encode() in lines[-1]:
        return None  # nothing behind it
    at = len(content) - choose.randint(1, len(lines[-1]) - 1)
    os.truncate(metrics, at)
    return f"{metrics.name} at {at}"


def damage_the_cache(scene: Scene, choose: Chooser) -> str | None:
    stores = sorted((scene.cache / "sequences").glob("*/"))
    return _damage(choose.choice(stores) if stores else None, choose, choose.choice([tear, flip_a_bit, lose]))


def _newest(folder: Path) -> Path | None:
    return next(reversed(committed(folder)), None) if folder.is_dir() else None


def _damage(folder: Path | None, choose: Chooser, how: Callable[[Path, Chooser], str]) -> str | None:
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder is not None else []
    if not files:
        return None
    small = [path for path in files if path.name in (MANIFEST, MARKER)]
    file = choose.choice(small if small and choose.random() < 0.4 else files)
    return f"{file.parent.name}/{file.name}: {how(file, choose)}" if file.stat().st_size else None


def tear(file: Path, choose: Chooser) -> str:
    at = choose.randrange(file.stat().st_size)
    file.chmod(0o644)
    os.truncate(file, at)
    sync(file)
    return f"torn at {at:,}"


def flip_a_bit(file: Path, choose: Chooser) -> str:
    at = choose.randrange(file.stat().st_size)
    file.chmod(0o644)
    flip(file, at)
    return f"a bit of byte {at:,}"


def lose(file: Path, choose: Chooser) -> str:
    file.unlink()
    return "gone"


def empty(folder: Path) -> None:
    """What the folder held is gone; it may be where a disk is mounted."""
    for path in folder.iterdir() if folder.is_dir() else ():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


NO_CHECKPOINT = "error: no checkpoint is whole"
NO_MIRROR = "error: no checkpoint at the mirror .+ is whole"
ASKED = (75, 0)
FAULTS: Mapping[str, During | Between] = {
    "a rank is killed": During(kill_a_rank, WITH_RANKS, (1, 0), "a process was killed by SIGKILL"),
    "the node is killed": During(kill_the_node, WITH_RANKS, (1, 0)),
    "the command is killed": During(kill_the_command, ANYWHERE, (KILLED, 0)),
    "all of it is killed": During(kill_all, ANYWHERE, (KILLED, 0)),
    "it is asked to stop": During(ask_once, ANYWHERE, ASKED),
    "it is asked to stop, twice": During(ask_twice, ANYWHERE, ASKED),
    "a rank stands still": During(
        stop_a_rank, (LOADING, STEP, EVALUATING, SAVING), (1, 0), "has made no progress for", watched=True
    ),
    "it is suspended": During(suspend_all, ANYWHERE, (0,)),
    "the disk is full": During(
        fill_the_disk, (STEP, SAVING, EVALUATING, WRITING), (1, 0),
        "No space left on device|File too large", on_small_disk=True,
    ),
    "a checkpoint is torn": Between(tear_a_checkpoint, NO_CHECKPOINT),
    "a checkpoint has another bit": Between(flip_a_checkpoint, NO_CHECKPOINT),
    "a checkpoint lacks a file": Between(lose_of_a_checkpoint, NO_CHECKPOINT),
    "the metrics are torn": Between(tear_the_metrics),
    "the machine is lost": Between(lose_the_machine, mirrored=True),
    "the machine is lost, its mirror torn": Between(tear_the_mirror, NO_MIRROR, mirrored=True),
    "the machine is lost, its mirror has another bit": Between(flip_in_the_mirror, NO_MIRROR, mirrored=True),
    "the machine is lost, its mirror lacks a file": Between(lose_of_the_mirror, NO_MIRROR, mirrored=True),
    "the tokenised data are damaged": Between(damage_the_cache),
}  # fmt: skip


@dataclass(frozen=True)
class Card:
    """A fault and, where it hits a run, the phase that is aimed at."""

    fault: str
    phase: str = ""

    @property
    def kind(self) -> During | Between:
        return FAULTS[self.fault]

    @property
    def mirrored(self) -> bool:
        return self.phase in (MIRRORING, FETCHING) or (isinstance(self.kind, Between) and self.kind.mirrored)

    @property
    def on_small_disk(self) -> bool:
        return isinstance(self.kind, During) and self.kind.on_small_disk

    @property
    def watched(self) -> bool:
        return isinstance(self.kind, During) and self.kind.watched


def deck(seed: int) -> list[Card]:
    """Every fault in every phase once, shuffled; what lies between attempts several times."""
    cards: list[Card] = []
    for name, kind in FAULTS.items():
        phases = kind.phases if isinstance(kind, During) else ("",) * 4
        cards += [Card(name, phase) for phase in phases]
    random.Random(seed).shuffle(cards)
    return cards
