"""Finished shards go to a store elsewhere as they are finished, so that no machine's end costs a row twice.

Each rank sends what it wrote. A shard that is not sent yet is sent by whoever finds it on the same disk later.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from velocity.checkpoints.commit import entry_of
from velocity.checkpoints.mirror import RESULT, send_records
from velocity.checkpoints.restore import SHARDS
from velocity.checkpoints.store import Store, open_store
from velocity.terminal import say

LONGEST_PAUSE_SECONDS = 60.0
FINISH_SECONDS = 1800.0


class ShardMirror:
    """What is offered goes out in a thread; whatever happens to it, the job goes on."""

    def __init__(self, url: str, run_folder: Path, *, first: bool) -> None:
        """The `first` rank sends the run's records, too, before anything else."""
        self.url, self.run_folder, self.first = url, run_folder, first
        self._offered: queue.Queue[Path | None] = queue.Queue()
        self._over = threading.Event()
        self._last_error = ""
        self._store: Store | None = None
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        self._thread.start()

    def offer(self, file: Path) -> None:
        """The finished shard will be sent."""
        self._offered.put(file)

    def finish(self, seconds: float = FINISH_SECONDS) -> bool:
        """Wait so long for what is on its way; True where all of it arrived, which is also said where it did not."""
        self._offered.put(None)
        self._thread.join(seconds)
        self._over.set()
        if self._thread.is_alive():
            say(f"WARNING: not all finished rows are at {self.url}: {self._last_error or 'it takes too long'}")
        return not self._thread.is_alive()

    def _work(self) -> None:
        if self.first:
            self._until_sent(lambda store: send_records(store, self.run_folder))
        while (file := self._offered.get()) is not None:
            self._until_sent(partial(_send, file))

    def _until_sent(self, send: Callable[[Store], object]) -> None:
        pause = 1.0
        while not self._over.is_set():
            try:
                self._store = self._store or open_store(self.url)
                send(self._store)
                return
            except Exception as error:  # every store has errors of its own
                pause = self._failed(error, pause)

    def _failed(self, error: Exception, pause: float) -> float:
        """The next pause between tries."""
        if not self._last_error:
            say(f"WARNING: nothing reaches the mirror {self.url}: {error}; the job goes on, and tries again")
        self._last_error = f"{type(error).__name__}: {error}".splitlines()[0]
        self._over.wait(pause)
        return min(2 * pause, LONGEST_PAUSE_SECONDS)


def _send(file: Path, store: Store) -> None:
    if file.is_file():
        store.put(file, f"{SHARDS}/{file.name}", entry_of(file))


def send_result(url: str, run_folder: Path) -> None:
    """The complete run's records and its completions lie at the mirror, in place of the shards; else it is said."""
    try:
        store = open_store(url)
        send_records(store, run_folder)
        store.remove_folder(SHARDS)
    except Exception as error:  # every store has errors of its own
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        say(f"WARNING: the result is not at {url}: {why}; run the same command to send it")


def is_finished(url: str) -> bool:
    """True where the mirror has the result of a complete run and no shards beside it any more, or cannot be asked."""
    try:
        store = open_store(url)
        return store.read(RESULT) is not None and not store.names(SHARDS)
    except Exception as error:  # every store has errors of its own
        say(f"WARNING: cannot read the mirror {url}: {type(error).__name__}")
        return True
