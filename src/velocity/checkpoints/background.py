"""A rank's part of a checkpoint is written, listed and committed; it can go on while the ranks train.

Each rank writes its own files and posts what they are; the first rank commits when all have. It knows no engine.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from velocity.checkpoints import commit
from velocity.checkpoints.commit import Entry, entry_of
from velocity.checkpoints.pieces import Pieces, part_of, write
from velocity.checkpoints.report import Report
from velocity.distributed.comm import Board, Ranks
from velocity.files import sync

PATIENCE_SECONDS = 7200.0  # for the slowest rank's disk
STATE = "state.json"
POLITE = 10  # of 0 to 19


class Writer:
    """Writes this rank's part of one checkpoint: `files` are the pieces of each of its files, `state` is of them all.

    `began` is when the save began, by time.perf_counter; `kept` gives the steps that are kept, of this one's.
    """

    def __init__(  # noqa: PLR0913 - what a checkpoint is, and who writes it
        self,
        final: Path,
        files: Iterable[Pieces],
        state: Mapping[str, object],
        ranks: Ranks,
        board: Board,
        began: float,
        kept: Callable[[int], list[int]] = lambda step: [step],
    ) -> None:
        self.final, self.files, self.state = final, files, state
        self.ranks, self.board, self.began, self.kept = ranks, board, began, kept
        self.report = Report(commit.step_of(final))
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """The writing goes on beside what the caller does next; the pieces must not change."""
        self._thread = threading.Thread(target=self._run_politely, name=f"saving {self.final.name}", daemon=True)
        self._thread.start()

    def _run_politely(self) -> None:
        """Training goes first where cores are short: on Linux a thread has a priority of its own."""
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), POLITE)
        self.run()

    def wait(self) -> Report:
        """How it went, when it has ended: on the first rank for the checkpoint, on the others for their part of it."""
        if self._thread is not None:
            self._thread.join()
        return self.report

    @property
    def ended(self) -> bool:
        """True where `wait` does not wait."""
        return self._thread is None or not self._thread.is_alive()

    def run(self) -> None:
        """Write, and on the first rank commit; what goes wrong is in the report."""
        temporary, name = commit.temporary_of(self.final), self.final.name
        note: dict[str, Any] = {}
        try:
            entries = {
                part_of(self.ranks.rank, number): write(temporary / part_of(self.ranks.rank, number), pieces)
                for number, pieces in enumerate(self.files)
            }
            note["entries"] = {file: asdict(entry) for file, entry in entries.items()}
        except Exception as error:
            note["trouble"] = f"{error} (rank {self.ranks.rank})"
        self.files = ()
        self.board.post(f"{name}/{self.ranks.rank}", json.dumps(note))
        if self.ranks.first:
            self._commit(temporary)
        elif self.ranks.keeps:
            self._commit_too(temporary)
        self.report = replace(self.report, seconds=time.perf_counter() - self.began)

    def _commit(self, temporary: Path) -> None:
        """The checkpoint is there, on this disk, and keepers of other disks hear what belongs to it; or of trouble."""
        said: dict[str, Any] = {}
        try:
            ranks = range(self.ranks.world_size)
            # all of them, whatever the first one says: a note that stays would be taken for one of the next save
            notes = [json.loads(self.board.take(f"{self.final.name}/{rank}", PATIENCE_SECONDS)) for rank in ranks]
            if trouble := next((note["trouble"] for note in notes if "trouble" in note), ""):
                raise OSError(trouble)
            entries = {file: Entry(**entry) for note in notes for file, entry in note["entries"].items()}
            kept = self.kept(commit.step_of(self.final))
            self._put_down(temporary, entries)
            said = {"entries": {file: asdict(entry) for file, entry in entries.items()}, "kept": kept}
            self.report = replace(self.report, bytes=sum(entry.size for entry in entries.values()), kept=tuple(kept))
        except Exception as error:
            commit.discard(temporary)  # it would keep a full disk full
            said = {"trouble": str(error)}
            self.report = replace(self.report, trouble=str(error))
        for keeper in self.ranks.keepers[1:]:
            self.board.post(f"{self.final.name}/of/{keeper}", json.dumps(said))

    def _commit_too(self, temporary: Path) -> None:
        """The same on a disk that the first rank does not see: our files, and a manifest that lists all ranks'."""
        try:
            said = json.loads(self.board.take(f"{self.final.name}/of/{self.ranks.rank}", PATIENCE_SECONDS))
            if "trouble" in said:
                raise OSError(said["trouble"])
            self._put_down(temporary, {file: Entry(**entry) for file, entry in said["entries"].items()})
            self.report = replace(self.report, kept=tuple(said["kept"]))
        except Exception as error:
            commit.discard(temporary)
            self.report = replace(self.report, trouble=str(error))

    def _put_down(self, temporary: Path, entries: dict[str, Entry]) -> None:
        (temporary / STATE).write_text(json.dumps(self.state, indent=1))
        sync(temporary / STATE)
        entries[STATE] = entry_of(temporary / STATE)
        commit.commit(self.final, entries)
