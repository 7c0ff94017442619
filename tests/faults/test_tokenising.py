"""A command that is stopped or killed while it tokenises: nothing of it lives on, holds a lock or looks whole."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import processes_naming, start
from tests.making import TEXT, tiny_model_folder, write_job, write_jsonl


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and 20 MB of text: seconds for the tokenizer."""
    folder = tmp_path_factory.mktemp("tokenising")
    tiny_model_folder(folder / "model")
    write_jsonl(folder / "train.jsonl", [{"text": TEXT}] * (20_000_000 // len(TEXT)))
    return folder


def wait_for(what: Callable[[], object], seconds: float) -> bool:
    """Whether `what` became true in time."""
    deadline = time.monotonic() + seconds
    while not what() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(what())


def is_free(lock: Path) -> bool:
    with lock.open() as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@pytest.mark.parametrize(
    ("number", "to_all", "status"),
    [
        (signal.SIGINT, False, 75),
        (signal.SIGTERM, True, 75),  # as a cluster that cancels a job
        (signal.SIGUSR1, True, 75),  # as Slurm before the time is up
        (signal.SIGKILL, False, -signal.SIGKILL),
    ],
)
def test_nothing_of_it_is_left(folder: Path, tmp_path: Path, number: signal.Signals, to_all: bool, status: int):
    job = write_job(
        tmp_path / "job.yaml",
        task="pretrain",
        model=str(folder / "model"),
        data={"train": str(folder / "train.jsonl"), "processes": 2},
    )
    process = start("run", job)
    try:
        sequences = tmp_path / "cache" / "sequences"
        assert wait_for(lambda: list(sequences.glob(".*/sequences.arrow")), 60)
        assert wait_for(lambda: len(processes_naming(str(job))) == 3, 10), "the command and its two workers"
        os.killpg(process.pid, number) if to_all else os.kill(process.pid, number)
        process.wait(timeout=30)
        wait_for(lambda: not processes_naming(str(job)), 5)
        left = processes_naming(str(job))
        locks = [tmp_path / ".run.lock", *sequences.glob("*.lock")]
        # a process that ends loses its command line, by which we know it, a moment before its files and their locks
        wait_for(lambda: all(map(is_free, locks)), 5)
        locked = [lock.name for lock in locks if not is_free(lock)]
    finally:
        process.kill()
        process.wait()
        for worker in processes_naming(str(job)):
            os.kill(worker, signal.SIGKILL)
    said = process.communicate()[1]
    assert not left, "its workers live on"
    assert not locked, "the next run would be refused, or wait for ever"
    assert process.returncode == status, said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()
    assert not [path for path in sequences.iterdir() if path.is_dir() and not path.name.startswith(".")]
