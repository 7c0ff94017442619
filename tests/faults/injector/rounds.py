"""A round: a job that is hit a few times, started again by the same command each time, and held against the same job
that nobody disturbed."""

from __future__ import annotations

import hashlib
import json
import random
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.commands import losses
from tests.faults.injector.kinds import KILLED, Between, Broken, Card, During, empty, kill_all, lose_the_machine
from tests.faults.injector.scene import (
    EVALUATING,
    FETCHING,
    HANG_SECONDS,
    KEEP,
    LOADING,
    SAVING,
    STARTING,
    STEP,
    STEPS,
    TOKENISING,
    Attempt,
    Ended,
    Scene,
    Size,
    forget,
    prepare,
)
from tests.faults.test_bad_input import may_mount
from velocity.checkpoints.commit import committed, damage, step_of

SIZES = [Size(processes, zero) for processes in (1, 2) for zero in (0, 1, 2, 3)]
ACROSS_SIZES = 1e-5
MOST_ATTEMPTS = 4  # of those that nobody disturbs
DISK_KIBIBYTES = 32_768
LINGERS_SECONDS = {STARTING: 2.5, TOKENISING: 0.3, LOADING: 5.0, STEP: 0.2, EVALUATING: 0.05, SAVING: 0.05}


@dataclass
class Hit:
    """A fault that was injected, and what came of it."""

    round: int
    fault: str
    phase: str  # where it landed
    what: str
    outcome: str = "survived"  # or `refused`, or `lost`
    status: int = 0
    why: str = ""


@dataclass
class Played:
    """A round at its end."""

    number: int
    size: str
    cards: list[str]
    hits: list[Hit] = field(default_factory=list)
    attempts: int = 0
    seconds: float = 0.0
    trouble: list[str] = field(default_factory=list)
    furthest: float = 0.0  # from the undisturbed run's losses, where the size changed

    def describe(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Outcome:
    """What a run leaves that is to be the same."""

    losses: list[tuple[int, float, float]]
    evaluations: list[tuple[int, float]]
    model: str


def outcome(scene: Scene) -> Outcome:
    lines = scene.run.lines()
    evaluations = [(line["step"], line["eval"]["eval"]["loss"]) for line in lines if "eval" in line]
    digest = hashlib.sha256()
    for file in sorted(scene.run.model.rglob("*")):
        if file.name != "README.md":  # it names the run's folder
            digest.update(file.name.encode() + file.read_bytes())
    return Outcome(losses(scene.run.path), evaluations, digest.hexdigest())


class Game:
    """Rounds on one model and one data set. What a job does undisturbed is found out once a size."""

    def __init__(self, base: Path, seed: int) -> None:
        self.base, self.seed = base, seed
        self._undisturbed: dict[Size, Outcome] = {}
        prepare(base)

    def undisturbed(self, size: Size) -> Outcome:
        """The same job at that size; AssertionError where it fails by itself."""
        if size not in self._undisturbed:
            scene = Scene(self.base, self.base / f"straight-{size.processes}-{size.zero}")
            ended = scene.attempt(size)
            assert ended.status == 0, ended.said
            self._undisturbed[size] = outcome(scene)
            forget(scene.folder)
        return self._undisturbed[size]

    def play(
        self, number: int, cards: Sequence[Card], *, size: Size | None = None, elastic: bool | None = None
    ) -> Played:
        """A round with these faults, one after the other."""
        choose = random.Random(f"{self.seed}/{number}")
        picked = choose.choice(SIZES)
        size = picked if size is None else size
        changes = choose.random() < 0.3
        elastic = changes if elastic is None else elastic
        scene = Scene(
            self.base, self.base / f"round-{number}",
            mirrored=any(card.mirrored for card in cards) or choose.random() < 0.2,
            restarts=choose.choice([0, 0, 0, 1]),
            hang_seconds=HANG_SECONDS if any(card.watched for card in cards) else 1800.0,
        )  # fmt: skip
        began = time.monotonic()
        played = Played(number, str(size), [f"{card.fault} / {card.phase}" for card in cards])
        with ExitStack() as stack:
            if any(card.on_small_disk for card in cards):
                scene.disk = stack.enter_context(small_disk(scene.folder / "disk"))
            Round(scene, size, choose, played, elastic=elastic).play(cards)
            played.trouble += _trouble(scene, self.undisturbed(size), played, exact=not elastic)
        for hit in played.hits if played.trouble else ():
            hit.outcome = "lost"
        played.seconds = round(time.monotonic() - began, 1)
        forget(scene.folder)
        return played


class Round:
    """One job, hit and started again until it is complete."""

    def __init__(self, scene: Scene, size: Size, choose: random.Random, played: Played, *, elastic: bool) -> None:
        self.scene, self.size, self.choose, self.played, self.elastic = scene, size, choose, played, elastic
        scene.folder.mkdir(parents=True, exist_ok=True)

    def play(self, cards: Sequence[Card]) -> None:
        for card in cards:
            kind = card.kind
            ended = self._during(card, kind) if isinstance(kind, During) else self._between(card, kind)
            if ended is not None and ended.status == 0:
                return
        ended = None
        for _ in range(MOST_ATTEMPTS):
            ended = self._attempt()
            if ended.status == 0:
                return
            self._relieve()
        self.played.trouble.append(f"not complete after {MOST_ATTEMPTS} more attempts: {_last(ended)}")

    def _attempt(self, disturb: Any = None, *options: str) -> Ended:
        size = self.choose.choice(SIZES) if self.elastic and self.played.attempts else self.size
        self.played.attempts += 1
        ended = self.scene.attempt(size, disturb, *options)
        done = f"{size}, {self.scene.steps()} steps, exit status {ended.status}"
        log = f"  attempt {self.played.attempts}: {done}: {_last(ended)[:150]}"
        print(log, flush=True)
        return ended

    def _during(self, card: Card, kind: During) -> Ended:
        """The job was started, and hit if it came to the phase."""
        if card.phase == FETCHING:
            if not committed(self.scene.mirror):
                self._kill()
            lose_the_machine(self.scene, self.choose)
        if card.phase == TOKENISING:
            forget(self.scene.cache)
        broken: list[Broken] = []

        def disturb(attempt: Attempt) -> None:
            if attempt.reach(card.phase, self.choose.randint(0, 3)):
                time.sleep(self.choose.uniform(0, LINGERS_SECONDS.get(card.phase, 0.0)))
                broken.extend(filter(None, [kind.act(attempt, self.choose)]))

        ended = self._attempt(disturb)
        if broken:
            hit = self._hit(card, broken[0], ended)
            self._judge(hit, ended, kind.statuses, kind.said)
        else:
            self._judge(None, ended, (0,), "")
        self._relieve()
        return ended

    def _kill(self) -> Ended:
        """The job was started, and killed after some steps."""
        return self._during(Card("all of it is killed", STEP), During(kill_all, (STEP,), (KILLED, 0)))

    def _between(self, card: Card, kind: Between) -> Ended | None:
        """The job was started and killed, what it left was damaged, and the next attempt answered as it should."""
        killed = self._kill()
        if killed.status == 0:
            return killed
        whole = committed(self.scene.run.checkpoints)
        what = kind.act(self.scene, self.choose)
        if what is None:
            return None
        held = f"{len(whole)} checkpoint(s)"
        ended = self._attempt()
        hit = self._hit(card, Broken(held, what), ended)
        if kind.refused and re.search(kind.refused, ended.said):
            hit.outcome = "refused"
            self._judge(hit, ended, (1, 2), kind.refused)
            empty(self.scene.mirror)
            forget(self.scene.run.path)  # as --fresh, but that nothing is left beside it
            return None
        self._judge(hit, ended, (0,), "")
        return ended

    def _hit(self, card: Card, broken: Broken, ended: Ended) -> Hit:
        hit = Hit(self.played.number, card.fault, broken.phase, broken.what, status=ended.status)
        self.played.hits.append(hit)
        return hit

    def _judge(self, hit: Hit | None, ended: Ended, statuses: Sequence[int], said: str) -> None:
        """An attempt's end says what happened, and leaves no process."""
        for why in badly_ended(ended, statuses, said):
            self.played.trouble.append(why)
            if hit is not None:
                hit.why = why

    def _relieve(self) -> None:
        if self.scene.disk is not None:
            (self.scene.disk / "filler").unlink(missing_ok=True)


def badly_ended(ended: Ended, statuses: Sequence[int], said: str) -> Iterator[str]:
    """What is wrong with how an attempt ended: its status, what it said, what it left."""
    last = ended.said.splitlines()[-3:]
    if ended.status not in statuses:
        yield f"exit status {ended.status}, not of {list(statuses)}: {_last(ended)}"
    elif ended.status > 0 and not (any(line.startswith("error: ") for line in last) and re.search(said, ended.said)):
        yield f"exit status {ended.status} and no reason: {_last(ended)}"
    elif ended.status == 0 and not last[-1:][0].startswith("done: "):
        yield f"exit status 0, and not done: {_last(ended)}"
    if "Traceback" in ended.said:
        yield f"a traceback: {_last(ended)}"
    if ended.left:
        yield f"processes were left: {ended.left}"


def _last(ended: Ended | None) -> str:
    return " | ".join(line.strip() for line in (ended.said if ended else "").splitlines()[-4:])


def _trouble(scene: Scene, expected: Outcome, played: Played, *, exact: bool) -> Iterator[str]:
    """How a finished run differs from the undisturbed one, and what it left."""
    found = outcome(scene)
    if [step for step, _, _ in found.losses] != list(range(1, STEPS + 1)):
        yield f"metrics.jsonl has the steps {[step for step, _, _ in found.losses]}"
    elif exact:
        yield from _unequal(found, expected)
    else:
        pairs = zip([*found.losses, *found.evaluations], [*expected.losses, *expected.evaluations], strict=False)
        played.furthest = max(abs(one[1] - other[1]) for one, other in pairs)
        if played.furthest > ACROSS_SIZES or len(found.evaluations) != len(expected.evaluations):
            yield f"losses are {played.furthest:.2e} away"
    if scene.run.status()["state"] != "complete":
        yield f"status.json says {scene.run.status()['state']}"
    yield from _left(scene)


def _unequal(found: Outcome, expected: Outcome) -> Iterator[str]:
    for name in ("losses", "evaluations"):
        one, other = getattr(found, name), getattr(expected, name)
        if one != other:
            differing = (pair for pair in zip(one, other, strict=False) if pair[0] != pair[1])
            yield f"{name} differ, first {next(differing, len(one))}"
    if found.model != expected.model:
        yield "the model differs"


def _left(scene: Scene) -> Iterator[str]:
    """What should not be there at the end."""
    temporary = scene.folder / "tmp"  # of processes that were killed
    seen = (path for path in scene.folder.rglob(".*") if not path.is_relative_to(temporary))
    hidden = [path for path in seen if not path.name.endswith(".lock")]
    if hidden:
        yield f"left behind: {sorted(str(path.relative_to(scene.folder)) for path in hidden)}"
    for place in filter(Path.is_dir, (scene.run.checkpoints, scene.mirror)):
        whole = committed(place)
        torn = [path.name for path in place.glob("step-*") if path not in whole]
        if torn:
            yield f"{place.name} has {torn} without a marker"
        broken = {path.name: why for path in whole if (why := damage(path))}
        if broken:
            yield f"{place.name}: {broken}"
        if len(whole) > KEEP:
            yield f"{place.name} has {[path.name for path in whole]}"
    if scene.mirrored:
        yield from _unmirrored(scene)


def _unmirrored(scene: Scene) -> Iterator[str]:
    here, there = committed(scene.run.checkpoints), committed(scene.mirror)
    if here and [step_of(path) for path in there[-1:]] != [step_of(path) for path in here[-1:]]:
        yield f"the mirror has {[path.name for path in there]}, here are {[path.name for path in here]}"
    metrics = scene.mirror / "run" / "metrics.jsonl"
    if not metrics.is_file() or metrics.read_text() != scene.run.metrics.read_text():
        yield "the mirror's metrics.jsonl is another one"
    status = scene.mirror / "run" / "status.json"
    if not status.is_file() or json.loads(status.read_text())["state"] != "complete":
        yield "the mirror's status.json is not complete"


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system in memory of DISK_KIBIBYTES; a plain folder where none may be mounted."""
    folder.mkdir(parents=True)
    if not may_mount():
        yield folder
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_KIBIBYTES}k", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
