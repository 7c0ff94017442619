"""Failures that speak: the rank that broke or hangs is named with its step and its records, the others as followers."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.ahead import done_ahead
from tests.commands import processes_naming, start, step_lines, velocity
from tests.making import write_job
from tests.running import inputs_of, planned, prepare_folder
from velocity.data.prepare import Preparation
from velocity.data.store import seal
from velocity.distributed import pulse
from velocity.runs.folder import RunFolder

BROKEN = 17  # the record whose tokens are torn
HANG_SECONDS = 6


@dataclass(frozen=True)
class Ended:
    """A command that failed: its status, what it said, and what lies in the run folder."""

    status: int
    said: str
    failures: dict[int, dict[str, Any]]
    left: list[int]

    @property
    def lines(self) -> list[str]:
        return self.said.splitlines()


def job_in(folder: Path, **launch: Any) -> Path:
    folder.mkdir()
    prepare_folder(folder)
    return write_job(
        folder / "job.yaml",
        duration={"steps": 60},
        checkpoint={"every": 1000},
        strategy={"zero": 2, "precision": "fp32"},
        launch={"processes": 2, **launch},
        batch={"rows": 8, "micro": 2},
    )


def end(run: Path, status: int, said: str) -> Ended:
    files = (run / "failures").glob("rank-*.json")
    found = {one["rank"]: one for one in (json.loads(file.read_text()) for file in files)}
    return Ended(status, said, found, processes_naming(str(run)))


def break_a_record(folder: Path) -> None:
    """The store of the job's data holds a token that no model has, in one record."""
    job = planned(folder, folder / "run").job
    inputs_of(planned(folder, folder / "run"))
    store = Preparation(job, folder / "model", lambda text: None).source(job.data.train[0])
    path, ids = store.folder / "sequences.arrow", np.array(store[BROKEN - 1].ids)
    content = path.read_bytes()
    assert content.count(ids.tobytes()) == 1
    path.chmod(0o644)
    path.write_bytes(content.replace(ids.tobytes(), np.full_like(ids, 10**6).tobytes()))
    seal(store.folder)  # as if it had been made so: a store that was damaged is made again


def broken(folder: Path, **launch: Any) -> Ended:
    job = job_in(folder, **launch)
    text = job.read_text()
    break_a_record(folder)
    job.write_text(text)  # the plan of the data wrote one of its own
    done = velocity("run", job)
    return end(folder / "run", done.returncode, done.stderr)


def stopped(folder: Path) -> Ended:
    job, run = job_in(folder, hang_seconds=HANG_SECONDS), folder / "run"
    process = start("run", job)
    try:
        while len(step_lines(run)) < 3:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.02)
        os.kill(second_rank(run), signal.SIGSTOP)
        _, said = process.communicate(timeout=240)
    finally:
        process.kill()
    return end(run, process.returncode, said)


def stuck(folder: Path) -> Ended:
    """The first rank opens a file that is a pipe with nobody behind it: it waits in the system, for ever."""
    job, run = job_in(folder, hang_seconds=HANG_SECONDS), folder / "run"
    process = start("run", job)
    try:
        while not (run / "plan.json").exists():
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.02)
        os.mkfifo(run / "log.txt")
        _, said = process.communicate(timeout=240)
    finally:
        process.kill()
    return end(run, process.returncode, said)


def second_rank(run: Path) -> int:
    """Its process: what it is doing says it."""
    doing = pulse.read(pulse.doing_file(RunFolder(run).failures, 1))
    assert doing is not None
    return int(doing["pid"])


Work = Callable[[str], Ended]


@pytest.fixture(name="ended", scope="module")
def _ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Work]:
    folder = tmp_path_factory.mktemp("failures")
    with done_ahead(
        {work.__name__: partial(work, folder / work.__name__) for work in (broken, stopped, stuck)}
    ) as ended:
        yield ended


def test_the_first_exception_is_the_last_that_is_said_with_rank_host_step_and_records(ended: Work) -> None:
    found = ended("broken")
    assert found.status == 1
    what, where, fix = found.lines[-3:]
    assert what.startswith("error: IndexError: "), found.said
    place = re.fullmatch(r"  where: rank ([01]) on (\S+), step (\d+), records (.+?)( \(\d+ more\))?", where)
    assert place, where
    assert fix == "  fix:   --debug shows the traceback"
    assert "Traceback" not in found.said
    cause = found.failures[int(place[1])]
    assert (cause["step"], cause["host"], cause["peer"]) == (int(place[3]), pulse.host(), False)
    assert [one for one in cause["records"] if one.endswith(f"train.jsonl:{BROKEN}")], "the torn one is among them"
    assert place[4].split(", ") == cause["records"][:3]
    assert "Traceback" in cause["trace"] and "embedding" in cause["trace"]


def test_a_rank_that_only_lost_its_peer_is_marked_as_such(ended: Work) -> None:
    found = ended("broken")
    peers = [one for one in found.failures.values() if one["peer"]]
    assert len(found.failures) == 2 and len(peers) == 1, found.failures
    assert all(one["kind"] != "IndexError" for one in peers)


def test_a_stopped_rank_is_found_and_named_and_the_other_one_waited_for_it(ended: Work) -> None:
    found = ended("stopped")
    assert found.status == 1
    what, where, _ = found.lines[-3:]
    seconds = f"{HANG_SECONDS} s"
    assert what == f"error: rank 1 has made no progress for {seconds}: it is stopped by a signal (state T)", found.said
    assert re.fullmatch(r"  where: rank 1 on \S+, step \d+, .+", where), where
    assert (found.failures[1]["hung"], found.failures[0]["peer"]) == (True, True)
    assert "distributed_c10d.py" in found.failures[0]["trace"], "it waited in a collective"


def test_a_rank_that_is_stuck_in_a_call_of_the_system_is_named_with_its_stack(ended: Work) -> None:
    found = ended("stuck")
    assert found.status == 1
    what, where, fix = found.lines[-3:]
    assert re.fullmatch(
        rf"error: rank 0 has made no progress for {HANG_SECONDS} s; it was in (pathlib|_local)\.py:\d+ in open", what
    ), found.said
    assert where.startswith("  where: rank 0 on ") and "stack-0000.txt" in fix
    stack = found.said[found.said.index("the stack of rank 0, the innermost call first:") : found.said.index("error: ")]
    assert 'progress.py", line' in stack and "in build_callbacks" in stack
    assert (found.failures[0]["hung"], found.failures[1]["peer"]) == (True, True)


@pytest.mark.parametrize("name", ["broken", "stopped", "stuck"])
def test_no_process_is_left(ended: Work, name: str) -> None:
    assert ended(name).left == []


@pytest.mark.slow
def test_what_fails_twice_of_the_same_at_the_same_step_is_not_started_a_third_time(tmp_path: Path) -> None:
    found = broken(tmp_path / "broken", max_restarts=5)
    assert found.status == 1
    assert len(re.findall("restart 1 of 5, from the last checkpoint", found.said)) == 1
    assert "restart 2 of 5" not in found.said
    assert re.fullmatch(r"not started again: it failed twice of the same, at step \d+", found.lines[-4])
    assert found.lines[-3].startswith("error: IndexError: ")
    assert list((tmp_path / "broken" / "run" / "failures" / "attempt-1").glob("rank-*.json"))
