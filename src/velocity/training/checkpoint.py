"""The commit protocol: written aside, renamed, marked last. It knows no engine's format.

A folder without its COMMITTED file does not exist: it is a save that was cut off.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from velocity.distributed import comm
from velocity.distributed.engine import TrainEngine
from velocity.files import sync, sync_all

MARKER = "COMMITTED"


@dataclass
class TrainState:
    """All that a run needs to go on besides the engine's state: order, schedule and randomness follow from the step."""

    step: int = 0  # optimizer steps done, skipped ones included
    tokens: int = 0  # trained on
    skipped: int = 0  # steps with a non-finite gradient
    skipped_in_a_row: int = 0


class Checkpoints:
    """The checkpoints of one run. Every rank calls each method; rank 0 decides and writes."""

    def __init__(self, folder: Path, keep: int, *, first: bool) -> None:
        self.folder, self.keep, self.first = folder, keep, first

    def save(self, engine: TrainEngine, state: TrainState) -> None:
        """A committed checkpoint of `state` exists; older ones beyond `keep` do not."""
        final = self.folder / f"step-{state.step:08}"
        temporary = self.folder / f".{final.name}.tmp"
        if self.first:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        comm.wait_for_all()
        engine.save(temporary / "engine")
        comm.wait_for_all()
        if self.first:
            (temporary / "state.json").write_text(json.dumps(asdict(state)))
            sync_all(temporary)
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
            (final / MARKER).touch()
            sync(final)
            sync(self.folder)
            self._prune()
        comm.wait_for_all()

    def resume(self, engine: TrainEngine) -> TrainState:
        """The state of the newest committed checkpoint, loaded; a fresh one where there is none."""
        newest = comm.from_first(str(self._committed()[-1]) if self.first and self._committed() else None)
        if newest is None:
            return TrainState()
        engine.load(Path(newest) / "engine")
        return TrainState(**json.loads((Path(newest) / "state.json").read_text()))

    def _committed(self) -> list[Path]:
        return sorted(marker.parent for marker in self.folder.glob(f"step-*/{MARKER}"))

    def _prune(self) -> None:
        for old in self._committed()[: -self.keep]:
            (old / MARKER).unlink()  # first, so that a half-removed one is not taken for whole
            shutil.rmtree(old)
