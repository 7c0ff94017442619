"""A machine that has nothing goes on from a mirror: the newest checkpoint there that is whole. It knows no tensors."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TypeVar

from velocity.checkpoints.commit import (
    MANIFEST,
    MARKER,
    Entry,
    commit,
    committed,
    manifest_of,
    name_of,
    remove,
    step_of,
    temporary_of,
)
from velocity.checkpoints.mirror import RECORDS, RESULT
from velocity.checkpoints.store import Altered, Store, check_installed, open_store
from velocity.config.load import read_resolved
from velocity.config.resolved import differences
from velocity.errors import FULL, UserError
from velocity.files import make_private, whole_file
from velocity.terminal import say

TRIES = 5
SHARDS = "shards"  # of a generate job: files of finished rows
Result = TypeVar("Result")


def check(url: str, *, fresh: bool = False) -> None:
    """Nothing, or UserError: a package is missing, the store cannot be read, or a `fresh` run would find another's."""
    check_installed(url)
    try:
        store = open_store(url)
        store.check()
        steps, rows = steps_at(store), bool(store.names(SHARDS) or store.read(RESULT))
    except Exception as error:  # every store has errors of its own
        raise _unreadable(url, error) from None
    if fresh and (steps or rows):
        what = f"the mirror {url} holds a run: its newest checkpoint is of step {steps[-1] if steps else 0}"
        what = what if steps else f"the mirror {url} holds a run: finished rows, or a result"
        raise UserError(what, "checkpoint.mirror", "give a fresh run another mirror, or empty this one")


def steps_at(store: Store) -> list[int]:
    """The steps of the marked checkpoints at the mirror, oldest first."""
    steps = sorted(step for name in store.names() if (step := step_of(Path(name))) >= 0)
    return [step for step in steps if store.read(f"{name_of(step)}/{MARKER}") is not None]


def restore(url: str, run_folder: Path, *, have: int | None = None) -> int | None:
    """The step whose checkpoint was fetched with the run's metrics; None where nothing newer than `have` is there.

    `have` is the newest step whose checkpoint is here and good; if left out, the newest that is committed. The run
    folder has its job.yaml. UserError where the mirror holds another job's run, or cannot be read and nothing is here.
    """
    if have is None:
        have = max(map(step_of, committed(run_folder / "checkpoints")), default=-1)
    try:
        store = _patiently(lambda: open_store(url))
        newer = [step for step in _patiently(lambda: steps_at(store)) if step > have]
        if newer:
            _patiently(lambda: _check_job(store, run_folder))
        for step in reversed(newer):
            say(f"fetching {name_of(step)} from {url} …")
            try:
                _patiently(lambda step=step: _fetch(store, step, run_folder))  # type: ignore[misc]
            except Altered as damage:
                say(f"WARNING: {name_of(step)} at {url} is not whole: {damage}; taking the one before")
                continue
            _patiently(lambda: _fetch_records(store, run_folder))
            return step
    except UserError:
        raise
    except Exception as error:  # every store has errors of its own
        if _is_full(error):
            raise
        if have < 0:
            raise _unreadable(url, error) from None
        say(f"WARNING: cannot read the mirror {url}: {_first_line(error)}; going on from step {have}, which is here")
        return None
    if newer and have < 0:
        raise UserError(f"no checkpoint at the mirror {url} is whole", "checkpoint.mirror", "give another mirror")
    return None


def fetch_shards(url: str, run_folder: Path) -> int:
    """The finished rows of the job that lie at the mirror, and not here, are fetched; how many files those are.

    UserError where the mirror holds another job's, or cannot be read.
    """
    try:
        store, count = _patiently(lambda: open_store(url)), 0
        _patiently(lambda: _check_job(store, run_folder))
        for name in _patiently(lambda: store.names(SHARDS)):
            entry = _patiently(lambda name=name: store.proven(f"{SHARDS}/{name}"))  # type: ignore[misc]
            file = run_folder / SHARDS / _inside(name)
            if entry is None or file.is_file():
                continue
            try:
                with whole_file(file) as temporary:
                    _patiently(
                        lambda name=name, entry=entry, file=temporary: store.fetch(f"{SHARDS}/{name}", file, entry)  # type: ignore[misc]
                    )
                count += 1
            except Altered as damage:
                say(f"WARNING: {name} at {url} is not whole: {damage}; its rows are done again")
        return count
    except UserError:
        raise
    except Exception as error:  # every store has errors of its own
        if _is_full(error):
            raise
        raise _unreadable(url, error) from None


def _inside(name: str) -> str:
    """The name of a file in a folder, of which none leads out of it."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise Altered(f"it names {name}")
    return name


def _fetch(store: Store, step: int, run_folder: Path) -> None:
    """The checkpoint is committed in the run folder. Altered where it is not whole; what was fetched of it stays."""
    name = name_of(step)
    final = run_folder / "checkpoints" / name
    temporary = temporary_of(final)
    entries = _manifest(store, name)
    make_private(temporary)
    for stray in temporary.iterdir():  # of a save here that was cut off
        if stray.name not in entries:
            shutil.rmtree(stray) if stray.is_dir() else stray.unlink()
    for file in sorted(entries):
        try:
            store.fetch(f"{name}/{file}", temporary / file, entries[file])
        except Altered:
            with contextlib.suppress(Exception):  # a mirror may be open to reading alone
                store.doubt(f"{name}/{file}")  # when the run comes to that step again, it is sent again
            shutil.rmtree(temporary)
            raise
    if (final / MARKER).exists():  # damaged, or we would not be here
        remove(final)
    commit(final, entries)


def _manifest(store: Store, name: str) -> dict[str, Entry]:
    """The files of the checkpoint at the mirror, none of them outside its folder."""
    with tempfile.TemporaryDirectory() as folder:
        for file in (MANIFEST, MARKER):
            Path(folder, file).write_bytes(store.read(f"{name}/{file}") or b"")
        try:
            entries = manifest_of(Path(folder))
        except (ValueError, TypeError, KeyError) as error:
            raise Altered(str(error)) from None
    for file in entries:
        path = PurePosixPath(file)
        if len(path.parts) != 1 or file in ("..", MANIFEST, MARKER):
            raise Altered(f"its {MANIFEST} names {file}")
    return entries


def _check_job(store: Store, run_folder: Path) -> None:
    """Nothing, or UserError where the mirror holds the run of another job, or of other data."""
    job, status = store.read("run/job.yaml"), store.read("run/status.json")
    differing: list[str] = []
    if job is not None:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "job.yaml").write_bytes(job)
            differing = differences(read_resolved(Path(folder, "job.yaml")), read_resolved(run_folder / "job.yaml"))
    if status is not None and not differing:
        ours, theirs = (json.loads(text).get("inputs") for text in ((run_folder / "status.json").read_text(), status))
        differing = [] if ours == theirs else ["the content of the model or of the data"]
    if differing:
        what = f"the mirror holds the run of another job; different: {'; '.join(differing[:3])}"
        raise UserError(what, store.url, "give another checkpoint.mirror")


def _fetch_records(store: Store, run_folder: Path) -> None:
    """metrics.jsonl is the mirror's; of the other records those that are not here yet are."""
    for name in RECORDS:
        content = None if name != "metrics.jsonl" and (run_folder / name).exists() else store.read(f"run/{name}")
        if content is not None:
            with whole_file(run_folder / name) as temporary:
                temporary.write_bytes(content)


def _patiently(work: Callable[[], Result]) -> Result:
    """What the work gives; tried again where the store does not answer."""
    for attempt in range(1, TRIES):
        try:
            return work()
        except (UserError, Altered):
            raise
        except Exception as error:  # every store has errors of its own
            if _is_full(error):
                raise
            say(f"the mirror does not answer ({_first_line(error)}); trying again")
            time.sleep(2.0**attempt)
    return work()


def _unreadable(url: str, error: Exception) -> UserError:
    if isinstance(error, UserError):
        return error
    what = f"cannot read the mirror {url}: {_first_line(error)}"
    return UserError(what, "checkpoint.mirror", "check the address, the network and your credentials")


def _is_full(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in FULL


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
