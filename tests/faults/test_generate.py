"""Batch inference goes on after kill -9 at any moment, on whatever engine and number of processes.

It ends with the completions of a run that was never disturbed: each row once, in order.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.commands import processes_naming, start, velocity
from tests.generating import claimed, completions, inputs_of, planned, question_folder, write_generate_job
from velocity.distributed.comm import Ranks
from velocity.inference.ledger import Ledger
from velocity.inference.run import generate
from velocity.runs.folder import RunFolder

PATIENCE_SECONDS = 90
WAYS = {  # what an attempt may differ in; a forward of streamed weights is slower, and takes more rows
    "one": ("--processes", 1, "generation.engine=transformers"),
    "two": ("--processes", 2, "generation.engine=transformers"),
    "split": ("--processes", 2, "generation.engine=deepspeed"),
    "streamed by one": ("--processes", 1, "generation.engine=zero", "batch.rows=16"),
    "streamed by two": ("--processes", 2, "generation.engine=zero", "batch.rows=16"),
}


@dataclass
class Disturbed:
    """A job that is started again and again, and what became of each attempt."""

    job: Path
    run: RunFolder
    ended: list[tuple[int, str]] = field(default_factory=list)  # exit status, standard error

    def shards(self) -> int:
        return len(list(self.run.shards.glob("*.jsonl")))

    def ranks(self) -> list[int]:
        return processes_naming(f"begin velocity.inference.run {self.run.path}")

    def attempt(self, way: str, disturb: Callable[[subprocess.Popen[str]], None], *overrides: str, shards: int) -> None:
        """The job is started, disturbed once `shards` more are there, and gone, with all of its processes."""
        before = self.shards()
        process = start("run", self.job, *WAYS[way][:3], *overrides, *WAYS[way][3:])
        deadline = time.monotonic() + PATIENCE_SECONDS
        while process.poll() is None and self.shards() < before + shards:
            assert time.monotonic() < deadline, "it does not get on"
            time.sleep(0.01)
        disturb(process)
        _, said = process.communicate(timeout=PATIENCE_SECONDS)
        self.ended.append((process.returncode, said))
        deadline = time.monotonic() + 20
        while processes_naming(str(self.run.path)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not processes_naming(str(self.run.path)), "a process outlived its launcher"


def kill_all(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended by itself
        os.killpg(process.pid, signal.SIGKILL)


def stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGUSR1)


def undisturbed(folder: Path, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The completions of a run in this process, of one rank and with other rows at once."""
    job = write_generate_job(folder / "undisturbed.yaml", {**settings, "output": str(folder / "undisturbed")})
    run = claimed(planned(job, "generation.engine=transformers", "batch.rows=16"))
    generate(run, Ranks())
    return completions(run.path)


SETTINGS = {"generation.max_new_tokens": 32, "batch.rows": 4}
ROWS = 480


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory) -> Disturbed:
    """Killed as a whole, killed in one rank, asked to stop, and gone on with to the end by another engine."""
    folder = question_folder(tmp_path_factory.mktemp("faults"), ROWS)
    made = Disturbed(write_generate_job(folder / "job.yaml", SETTINGS), RunFolder(folder / "run"))

    def kill_the_second_rank(process: subprocess.Popen[str]) -> None:
        ranks = made.ranks()
        assert len(ranks) == 2
        os.kill(max(ranks), signal.SIGKILL)

    made.attempt("one", kill_all, shards=1)
    made.attempt("two", kill_the_second_rank, shards=1)
    made.attempt("two", stop, shards=1)
    assert 3 <= made.shards() < ROWS / 16, "there is work left"
    return made


@pytest.fixture(scope="module")
def finished(disturbed: Disturbed) -> Disturbed:
    done = velocity("run", disturbed.job, *WAYS["streamed by two"])
    disturbed.ended.append((done.returncode, done.stderr))
    return disturbed


def test_a_killed_rank_ends_the_run_and_is_named(disturbed: Disturbed):
    status, said = disturbed.ended[1]
    assert status == 1
    assert said.splitlines()[-3] == "error: a process was killed by SIGKILL"
    assert said.splitlines()[-2].startswith("  where: rank ")
    assert "Traceback" not in said


def test_a_run_that_is_asked_to_stop_keeps_what_is_done_and_says_how_to_go_on(disturbed: Disturbed):
    status, said = disturbed.ended[2]
    assert status == 75, said
    assert "finished rows are kept" in said and "run the same command to go on" in said
    assert "Traceback" not in said


def test_completions_after_kills_are_those_of_an_undisturbed_run_line_by_line(finished: Disturbed):
    status, said = finished.ended[-1]
    assert status == 0, said
    found = completions(finished.run.path)
    assert found == undisturbed(finished.job.parent, SETTINGS)
    assert [line["number"] for line in found] == list(range(ROWS)), "each row once, in order"
    assert finished.run.status()["state"] == "complete"
    assert not finished.run.shards.exists()


def test_what_was_done_before_a_kill_was_not_done_again(finished: Disturbed):
    told = [line for line in finished.run.lines() if "rows_per_second" in line]
    last = told[-1]
    assert last["step"] == ROWS
    assert last["rows"] <= ROWS - 3 * 16, "three shards were there before the last attempt"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_a_thousand_rows_survive_fifty_kills_at_random_moments(tmp_path: Path, seed: int):
    rows, kills, choose = 1000, 50, random.Random(seed)
    folder = question_folder(tmp_path, rows)
    settings = {"generation.max_new_tokens": 96, "batch.rows": 1}  # seconds a shard: fifty attempts do not make all
    made = Disturbed(write_generate_job(folder / "job.yaml", settings), RunFolder(folder / "run"))
    ledger = Ledger(made.run.shards, inputs_of(planned(made.job).job).prompts.lengths)

    def kill(process: subprocess.Popen[str]) -> None:
        begun, there = time.monotonic(), made.shards()
        while time.monotonic() - begun < wait_seconds and made.shards() == there:
            time.sleep(0.01)
        ranks = made.ranks()
        if ranks and choose.random() < 0.5:
            os.kill(choose.choice(ranks), signal.SIGKILL)
        else:
            kill_all(process)

    for _ in range(kills):
        soon = choose.random() < 0.5  # at any moment from the start on; else a moment behind a shard
        wait_seconds = choose.uniform(0, 9) if soon else choose.uniform(0, 0.2)
        made.attempt(choose.choice(list(WAYS)), kill, shards=0 if soon else 1)
        assert made.ended[-1][0] != 0, "it was killed before its end"
    assert 20 < made.shards() < len(ledger.shards)
    assert made.run.result is None
    left = len(ledger.shards) - made.shards()
    made.attempt("two", kill_all, "batch.rows=16", shards=left)  # while the completions are put together
    done = velocity("run", made.job, *WAYS["one"])
    assert done.returncode == 0, done.stderr
    found = completions(made.run.path)
    assert [line["number"] for line in found] == list(range(rows))
    assert found == undisturbed(folder, settings)
