"""Finished checkpoints go to a store elsewhere, in the background, marker last. It knows no tensors.

URL/step-00000200/…      the files of a checkpoint, as they lie in checkpoints/
URL/run/metrics.jsonl …  the run's records, as they lie in its folder; of a complete one model/ or completions.…, too
URL/proofs/…             what each file was proven to be: see store.py
URL/wanted               the checkpoint that is on its way: each node sends its files of it
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

from velocity.checkpoints.commit import (
    MANIFEST,
    MARKER,
    Entry,
    committed,
    entry_of,
    manifest_of,
    step_of,
)
from velocity.checkpoints.store import Altered, Store, open_store
from velocity.files import make_private
from velocity.terminal import say

RECORDS = ("job.yaml", "deepspeed.json", "deepspeed-origins.json", "plan.json", "environment.json", "status.json",
           "metrics.jsonl", "log.txt", "audit.json", "rejected.jsonl")  # fmt: skip
RESULTS = ("model", "merged", "completions.jsonl", "completions.parquet", "rows", "evaluation.json")
RESULT = "run/result.json"  # written last: the files of the result, with their hashes
WANTED = "wanted"
FINISH_SECONDS = 1800.0  # at the end of a run, for what is not mirrored yet
LONGEST_PAUSE_SECONDS = 60.0  # between tries
POLL_SECONDS = 2.0  # of one node for another's files
PATIENCE_SECONDS = 1800.0  # without a file of another node
WAITING = 3  # checkpoints that a node keeps until the first node says which one it wants

Policy = Callable[[Sequence[int]], Iterable[int]]


class Mirror:
    """One a node. What is offered goes out in a thread; whatever happens to it, the run goes on."""

    def __init__(self, url: str, run_folder: Path, *, first: bool, kept: Policy) -> None:
        """`first` on the node of rank 0, which sends the records and marks; `kept` says which of some steps to keep.

        The newest checkpoint that is here is offered at once: it may not have arrived before we were killed.
        """
        self.url, self.run_folder, self.first, self.kept = url, run_folder, first, kept
        # a node's own: on a shared disk the others have theirs beside it
        self._links = run_folder / "checkpoints" / f".mirror.{socket.gethostname()}"
        shutil.rmtree(self._links, ignore_errors=True)
        self._changed = threading.Condition()
        self._held: dict[str, Path] = {}  # by name, what is to be sent: links to its files, which pruning leaves alone
        self._busy = ""  # the one of them that is on its way
        self._asked, self._answered = int(first), 0  # how often the records were to be sent, and were
        self._sending, self._over = False, False
        self._failures = 0
        self._last_error = ""
        for newest in committed(run_folder / "checkpoints")[-1:]:
            self.offer(newest)
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        self._thread.start()

    def offer(self, folder: Path) -> None:
        """The checkpoint, which was committed, will be sent unless a newer one is offered before its turn comes."""
        with self._changed:
            if folder.name in self._held:
                return
            self._held[folder.name] = self._hold(folder)
            waiting = sorted((name for name in self._held if name != self._busy), key=_order)
            for old in waiting[: -1 if self.first else -WAITING]:
                self._drop(old)
            self._asked += self.first
            self._changed.notify_all()

    def finish(self, seconds: float) -> list[str]:
        """Wait so long for what is on its way; what is not mirrored, which is also said. Nothing is sent afterwards."""
        with self._changed:
            self._asked += self.first
            self._changed.notify_all()
            self._changed.wait_for(lambda: not (self._held or self._records_due or self._sending), seconds)
            self._over = True
            self._changed.notify_all()
            left = sorted(self._held, key=_order) + (["the run's records"] if self._records_due else [])
        if left:
            why = self._last_error or f"{seconds:.0f} s were not enough"
            say(f"WARNING: not mirrored to {self.url}: {', '.join(left)}: {why}")
        shutil.rmtree(self._links, ignore_errors=True)
        return left

    @property
    def _records_due(self) -> bool:
        return self._asked > self._answered

    def _hold(self, folder: Path) -> Path:
        held = self._links / folder.name
        try:
            make_private(held)
            for file in folder.iterdir():
                os.link(file, held / file.name)
        except OSError:  # no hard links here: pruning may be faster than we are
            shutil.rmtree(held, ignore_errors=True)
            return folder
        return held

    def _drop(self, name: str) -> None:
        held = self._held.pop(name)
        if held.parent == self._links:
            shutil.rmtree(held, ignore_errors=True)

    def _work(self) -> None:
        store: Store | None = None
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._held or self._records_due or self._over)
                if self._over:
                    return
                self._sending = True
            try:
                store = store or open_store(self.url)
                done = self._round(store)
                self._succeeded()
                pause = 0.0 if done else POLL_SECONDS
            except Exception as error:  # every store has errors of its own
                self._failed(error)
                pause = min(LONGEST_PAUSE_SECONDS, 2.0 ** min(self._failures, 10))
            with self._changed:
                self._sending, self._busy = False, ""
                self._changed.notify_all()
                if pause and not self._over:
                    self._changed.wait(pause)  # a new checkpoint, or the end, is a reason to try at once

    def _round(self, store: Store) -> bool:
        """What is due was sent; False where the first node has not said yet what it wants."""
        asked = self._asked
        if self._records_due:
            send_records(store, self.run_folder)
            self._answered = asked
        wanted = None if self.first else store.read(WANTED)
        with self._changed:
            name = max(self._held, key=_order, default="") if self.first else (wanted or b"").decode()
            if name not in self._held:
                return not self._held
            self._busy = name
        try:
            self._send(store, name)
        except (Altered, FileNotFoundError) as error:
            gone = not (self._held[name] / MARKER).is_file()
            if not gone and isinstance(error, FileNotFoundError):
                raise  # it is the store that lacks something
            say(f"WARNING: {name} is not mirrored: {'it was pruned before it was sent' if gone else error}")
        with self._changed:
            for old in [old for old in self._held if _order(old) <= _order(name)]:
                self._drop(old)
        return True

    def _send(self, store: Store, name: str) -> None:
        """The checkpoint lies at the mirror, as far as it lies here; on the first node all of it does, marked."""
        held = self._held[name]
        try:
            entries = manifest_of(held)
        except ValueError as error:
            raise Altered(str(error)) from None
        if self.first:
            if store.read(f"{name}/{MARKER}") not in (None, (held / MARKER).read_bytes()):
                store.remove(f"{name}/{MARKER}")  # of another one, that was saved after the same step
            store.write(WANTED, name.encode())
        here = {file for file in entries if (held / file).is_file()}
        for file in sorted(here, key=_own_order):
            store.put(held / file, f"{name}/{file}", entries[file])
        if self.first:
            self._wait_for_others(store, name, {file: entries[file] for file in entries if file not in here})
            for file in (MANIFEST, MARKER):
                store.put(held / file, f"{name}/{file}", entry_of(held / file))
            self._prune(store)

    def _wait_for_others(self, store: Store, name: str, missing: dict[str, Entry]) -> None:
        """The files of other nodes are there. TimeoutError where none comes for long."""
        latest = time.monotonic()
        while True:
            left = {file: entry for file, entry in missing.items() if not store.has(f"{name}/{file}", entry)}
            if not left:
                return
            if len(left) < len(missing):
                latest = time.monotonic()
            if time.monotonic() - latest > PATIENCE_SECONDS:
                raise TimeoutError(f"{len(left)} files of {name} did not come from other nodes: {min(left)}, …")
            missing = left
            with self._changed:
                if self._over:
                    raise TimeoutError("the run ended")
                self._changed.wait(POLL_SECONDS)

    def _prune(self, store: Store) -> None:
        """Of the older ones the mirror has those that are kept here, too; what was cut off is gone."""
        names = {step_of(Path(name)): name for name in store.names() if _order(name) >= 0}
        marked = [step for step in sorted(names) if store.read(f"{names[step]}/{MARKER}") is not None]
        keep = {*self.kept(marked), *marked[-1:]}
        for step in sorted(names):
            if step < marked[-1] and step not in keep:
                store.remove(f"{names[step]}/{MARKER}")  # first: a half-removed one is not taken for whole
                store.remove_folder(names[step])

    def _succeeded(self) -> None:
        if self._failures:
            say(f"the mirror {self.url} takes files again")
        self._failures, self._last_error = 0, ""

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        self._last_error = f"{type(error).__name__}: {error}".splitlines()[0]
        if self._failures == 1 and not self._over:
            say(f"WARNING: nothing reaches the mirror {self.url}: {self._last_error}; the run goes on, and tries again")


def send_records(store: Store, run_folder: Path) -> None:
    """The run's records lie at the mirror as they are here and, where it is complete, its result."""
    with tempfile.TemporaryDirectory() as folder:
        for name in RECORDS:
            file, copy = run_folder / name, Path(folder, name)
            if file.is_file():
                shutil.copyfile(file, copy)  # metrics.jsonl grows while it is sent
                store.put(copy, f"run/{name}", entry_of(copy))
        status = Path(folder, "status.json")
        if status.is_file() and json.loads(status.read_text()).get("state") == "complete":
            _send_result(store, run_folder)


def _send_result(store: Store, run_folder: Path) -> None:
    paths = (run_folder / name for name in RESULTS)
    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*")))]
    entries = {str(file.relative_to(run_folder)): entry_of(file) for file in files if file.is_file()}
    for name, entry in entries.items():
        store.put(run_folder / name, f"run/{name}", entry)
    store.write(RESULT, json.dumps({name: asdict(entry) for name, entry in entries.items()}, indent=1).encode())


def _order(name: str) -> int:
    return step_of(Path(name))


def _own_order(file: str) -> bytes:
    """Another one on every node: on a shared disk they meet at few files, and skip what is there."""
    return sha256(f"{socket.gethostname()} {file}".encode()).digest()
