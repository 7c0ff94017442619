"""The checkpoints of a run: when one is written, which are kept, and what a run goes on from. It knows no loop.

What lies in a checkpoint is named by parameters, not by ranks: it loads at any number of ranks, stage or split.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from velocity.checkpoints import commit
from velocity.checkpoints.background import STATE, Writer
from velocity.checkpoints.pieces import Pieces, pieces_of, restore
from velocity.checkpoints.report import Report
from velocity.config.sections import CheckpointConfig
from velocity.distributed import comm
from velocity.distributed.comm import Board, Ranks
from velocity.distributed.engine import TrainEngine
from velocity.errors import JobError
from velocity.files import make_private
from velocity.terminal import say
from velocity.training.retention import Retention


@dataclass
class TrainState:
    """All that a run needs to go on besides the engine's state: order, schedule and randomness follow from the step."""

    step: int = 0  # optimizer steps done, skipped ones included
    skipped: int = 0  # steps with a non-finite gradient
    skipped_in_a_row: int = 0


@dataclass(frozen=True)
class Replay:
    """A held batch: its loss is saved with a checkpoint, and must come again when that is loaded."""

    loss: Callable[[], float]
    tolerance: float  # of 1, or of the loss where that is larger


class Checkpoints:
    """The checkpoints of one run. Every rank calls each method; rank 0 decides and commits."""

    def __init__(
        self,
        folder: Path,
        config: CheckpointConfig,
        ranks: Ranks,
        *,
        losses: Mapping[int, float] | None = None,
        replay: Replay | None = None,
        committed: Callable[[Path], None] = lambda folder: None,
    ) -> None:
        """`losses` are those by which earlier ones are judged, by step.

        `committed` hears of each new checkpoint, on the first rank, when it next looks.
        """
        self.folder, self.config, self.ranks, self.replay, self.committed = folder, config, ranks, replay, committed
        self.retention = Retention(config, losses)
        self.save_seconds = 0.0  # of the longest save so far, from its begin to its commit
        self._board = Board(ranks)
        self._writer: Writer | None = None
        self._blocked_seconds = 0.0
        self._reports: list[Report] = []
        self._host: dict[str, Tensor] = {}  # where pieces are copied to, used again by each save

    def save(
        self, engine: TrainEngine, state: TrainState, losses: Mapping[str, float] | None = None, *, wait: bool = False
    ) -> None:
        """A checkpoint of `state` is being written; with `wait` it is written.

        `losses` are those of the evaluation sets at this step. A save that fails leaves those before, and is reported.
        """
        began = time.perf_counter()
        self.finish()
        final = self.folder / commit.name_of(state.step)
        if comm.from_first((final / commit.MARKER).exists() if self.ranks.first else None):
            return  # a stop may be asked for just behind a save; the one that is there is never touched
        facts = {
            **asdict(state),
            "loss": comm.from_first(self.replay.loss()) if self.replay else None,
            "scaler": {name: value for name, value in engine.scaler.items() if isinstance(value, (int, float))},
        }
        if losses:
            self.retention.note(state.step, losses)
        if not self._prepare(final):
            return
        files: Iterable[Pieces] = (pieces_of(flats) for flats in engine.flats())
        if self.config.background:
            files = [[(key, self._copied(key, values)) for key, values in pieces] for pieces in files]
        self._writer = Writer(final, files, facts, self.ranks, self._board, began, self._kept_with)
        self._writer.start() if self.config.background else self._writer.run()
        self._blocked_seconds = time.perf_counter() - began
        if wait:
            self.finish()

    def _prepare(self, final: Path) -> bool:
        """True where the folder to write into is there and empty; else the trouble is reported."""
        temporary, trouble = commit.temporary_of(final), ""
        try:
            if self.ranks.keeps:
                commit.discard(temporary)
            comm.wait_for_all()
            make_private(temporary)
        except OSError as error:
            trouble = str(error)
        trouble = next(filter(None, comm.gather(trouble)), "")
        if trouble:
            self._report(Report(commit.step_of(final), trouble=trouble))
        return not trouble

    def _copied(self, key: str, values: Tensor) -> Tensor:
        kept = self._host.get(key)
        if kept is None or kept.shape != values.shape or kept.dtype != values.dtype:
            kept = self._host[key] = values.detach().to("cpu", copy=True)
        else:
            kept.copy_(values.detach())
        return kept

    def finish(self) -> None:
        """No save is going on."""
        if self._writer is not None:
            report, self._writer = self._writer.wait(), None
            self._report(replace(report, blocked_seconds=self._blocked_seconds))

    def _report(self, report: Report) -> None:
        self.save_seconds = max(self.save_seconds, report.seconds)
        self._reports.append(report)
        if report.trouble and self.ranks.first:
            newest = commit.committed(self.folder)
            behind = f"the last good one is of step {commit.step_of(newest[-1])}" if newest else "there is none yet"
            say(f"WARNING: no checkpoint of step {report.step}: {report.trouble}; the run goes on, and {behind}")
        elif self.ranks.keeps and not report.trouble:
            self.committed(self.folder / commit.name_of(report.step))
            self._prune(set(report.kept))

    def reports(self) -> list[Report]:
        """How the saves went that have ended since the last call."""
        if self._writer is not None and self._writer.ended:
            self.finish()
        reports, self._reports = self._reports, []
        return reports

    def _prune(self, kept: set[int]) -> None:
        found = commit.committed(self.folder)
        if not found or commit.damage(found[-1], sizes_only=True, elsewhere=self.ranks.private):
            return  # what is older may be the only good one
        for old in found:
            if commit.step_of(old) not in kept:
                commit.remove(old)

    def _kept_with(self, step: int) -> list[int]:
        """The steps of the checkpoints that are kept once there is one of this step, too."""
        return sorted(self.retention.kept([*map(commit.step_of, commit.committed(self.folder)), step]))

    def resume(self, engine: TrainEngine) -> TrainState:
        """The state of the newest whole checkpoint, loaded; a fresh one where there is none.

        One that is damaged is said, and the one before is taken; it is gone then, or the run would keep it for one that
        it has still to reach. JobError where there are only such, or where the held
        batch's loss is another one than was saved.
        """
        if self.ranks.keeps:
            commit.sweep(self.folder)
        listed = comm.from_first([one.name for one in commit.committed(self.folder)] if self.ranks.first else None)
        damaged: list[Path] = []
        for folder in (self.folder / name for name in reversed(listed)):
            if why := self._damage(folder):
                damaged.append(folder)
                if self.ranks.first:
                    say(f"WARNING: {folder} is not whole: {why}; the one before is taken")
                continue
            state = self._load(engine, folder)
            if self.ranks.keeps:
                for one in damaged:
                    commit.remove(one)
            return state
        if listed:
            fix = "begin anew with --fresh, or put a whole one back"
            raise JobError("no checkpoint is whole", str(self.folder), fix)
        return TrainState()

    def _damage(self, folder: Path) -> str | None:
        """What is wrong with a checkpoint; the ranks of a disk look at its files in turn."""
        try:
            why = commit.damage(folder, self.ranks.share(sorted(commit.manifest_of(folder))))
        except (OSError, ValueError) as error:
            why = str(error)
        return next(filter(None, comm.gather(why)), None)

    def _load(self, engine: TrainEngine, folder: Path) -> TrainState:
        restore(engine, folder)
        state = state_of(folder)
        engine.scaler.update(state["scaler"])
        if self.replay and state["loss"] is not None:
            self._check(folder, state["loss"], self.replay)
        return TrainState(state["step"], state["skipped"], state["skipped_in_a_row"])

    def _check(self, folder: Path, saved: float, replay: Replay) -> None:
        loss = comm.from_first(replay.loss())
        if not abs(loss - saved) <= replay.tolerance * max(1.0, abs(saved)):
            what = f"after loading, the held batch's loss is {loss:.6f}; {saved:.6f} was saved with the checkpoint"
            fix = (
                "the model's code, its settings or the precision differ from then: restore them, or begin with --fresh"
            )
            raise JobError(what, str(folder), fix)


def state_of(folder: Path) -> dict[str, Any]:
    """What state.json of a checkpoint says."""
    state: dict[str, Any] = json.loads((folder / STATE).read_text())
    return state
