"""The commit protocol: written aside, renamed, marked last. It knows no engine's format.

A folder without its COMMITTED file does not exist: it is a save that was cut off.
"""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from velocity.distributed import comm
from velocity.distributed.engine import TrainEngine
from velocity.errors import UserError
from velocity.files import sync, sync_all

MARKER = "COMMITTED"
FULL_BYTES = 1 << 20  # a disk with less room than this took what fitted of a write, and refused the rest


@dataclass
class TrainState:
    """All that a run needs to go on besides the engine's state: order, schedule and randomness follow from the step."""

    step: int = 0  # optimizer steps done, skipped ones included
    skipped: int = 0  # steps with a non-finite gradient
    skipped_in_a_row: int = 0


class Checkpoints:
    """The checkpoints of one run. Every rank calls each method; rank 0 decides and writes."""

    def __init__(self, folder: Path, keep: int, *, first: bool, layout: str = "") -> None:
        """`layout` says how the engine spreads its state: what was saved with another one does not load."""
        self.folder, self.keep, self.first, self.layout = folder, keep, first, layout

    def save(self, engine: TrainEngine, state: TrainState) -> None:
        """A committed checkpoint of `state` exists; older ones beyond `keep` do not."""
        final = self.folder / f"step-{state.step:08}"
        if comm.from_first((final / MARKER).exists() if self.first else None):
            return  # a stop may be asked for just behind a save; the one that is there is never touched
        temporary = self.folder / f".{final.name}.tmp"
        if self.first:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        comm.wait_for_all()
        try:
            engine.save(temporary / "engine")
        except Exception as error:
            full = shutil.disk_usage(temporary).free < FULL_BYTES
            if self.first:
                shutil.rmtree(temporary, ignore_errors=True)  # it would keep the disk full
            if full:  # torch's writer does not say so
                raise OSError(errno.ENOSPC, str(error), str(final)) from None
            raise
        comm.wait_for_all()
        if self.first:
            (temporary / "state.json").write_text(json.dumps({**asdict(state), "layout": self.layout}))
            sync_all(temporary)
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
            (final / MARKER).touch()
            sync(final)
            sync(self.folder)
            self._prune()
        comm.wait_for_all()

    def resume(self, engine: TrainEngine) -> TrainState:
        """The state of the newest committed checkpoint, loaded; a fresh one where there is none.

        UserError where it was saved with another layout.
        """
        newest = comm.from_first(str(self._committed()[-1]) if self.first and self._committed() else None)
        if newest is None:
            return TrainState()
        state = json.loads((Path(newest) / "state.json").read_text())
        if (saved := state.pop("layout")) != self.layout:
            what = f"the checkpoint is of {saved}, and does not load with {self.layout}"
            raise UserError(what, newest, "go on with the former settings, or begin anew with --fresh")
        engine.load(Path(newest) / "engine")
        return TrainState(**state)

    def _committed(self) -> list[Path]:
        return sorted(marker.parent for marker in self.folder.glob(f"step-*/{MARKER}"))

    def _prune(self) -> None:
        for old in self._committed()[: -self.keep]:
            (old / MARKER).unlink()  # first, so that a half-removed one is not taken for whole
            shutil.rmtree(old)
