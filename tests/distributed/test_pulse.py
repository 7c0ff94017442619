"""What a rank is doing lies in a small file, and its stack beside it when it is asked for."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from velocity.distributed import pulse
from velocity.distributed.pulse import Place


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Iterator[Path]:
    """This process is rank 3, whose pulse lies there."""
    handler = signal.getsignal(pulse.STACK_SIGNAL)
    pulse.begin(tmp_path / "failures", 3)
    yield tmp_path / "failures"
    pulse.end()
    signal.signal(pulse.STACK_SIGNAL, handler)
    faulthandler.enable(2)  # as pytest had it


def told(folder: Path) -> dict[str, Any]:
    found = pulse.read(pulse.doing_file(folder, 3))
    assert found is not None
    return found


def test_a_rank_that_begins_is_busy_and_has_no_step(folder: Path) -> None:
    found = told(folder)
    assert (found["rank"], found["pid"], found["host"]) == (3, os.getpid(), pulse.host())
    assert (found["step"], found["busy"], found["what"], found["beats"]) == (None, True, "starting", 0)


def test_the_place_in_a_step_and_the_records_are_told_and_each_is_a_beat(folder: Path) -> None:
    pulse.at(12, Place.LEARNS, "learning", ["a:1", "a:2"])
    pulse.working_on(["a:2"])
    found = told(folder)
    assert (found["step"], found["place"], found["what"]) == (12, 2, "learning")
    assert (found["records"], found["more"], found["busy"], found["beats"]) == (["a:2"], 0, False, 2)
    assert found["part"] == 1
    pulse.at(12, Place.SUMS, "adding up")
    assert told(folder)["part"] == 0


def test_shorter_words_leave_nothing_of_longer_ones(folder: Path) -> None:
    pulse.at(1, Place.READS, "reading" * 50, [f"{'long' * 20}:{number}" for number in range(30)])
    pulse.at(2, Place.READS, "x", ())
    assert told(folder)["what"] == "x"
    assert json.loads(pulse.doing_file(folder, 3).read_text())["records"] == []


def test_of_many_records_the_first_are_told_and_how_many_more_there_are(folder: Path) -> None:
    pulse.working_on([f"a:{number}" for number in range(pulse.TOLD + 8)])
    found = told(folder)
    assert (len(found["records"]), found["more"]) == (pulse.TOLD, 8)
    # three are shown, of 40
    assert pulse.where({**found, "step": 12}) == f"rank 3 on {pulse.host()}, step 12, records a:0, a:1, a:2 (37 more)"


def test_what_is_not_known_is_left_out() -> None:
    assert pulse.where({"rank": 1, "host": "node-2"}) == "rank 1 on node-2"
    assert pulse.where({"rank": 1, "host": "node-2", "step": 4, "records": ["a"]}) == (
        "rank 1 on node-2, step 4, records a"
    )


def test_before_its_records_are_known_a_rank_is_told_by_what_it_does(folder: Path) -> None:
    pulse.at(5, pulse.Place.READS, "reading its records", ())
    assert pulse.where(told(folder)) == f"rank 3 on {pulse.host()}, step 5, reading its records"
    pulse.working_on(["a:0"])
    assert pulse.where(told(folder)) == f"rank 3 on {pulse.host()}, step 5, records a:0"


def test_who_waits_for_others_says_so_as_long_as_it_does(folder: Path) -> None:
    with pulse.waiting():
        assert told(folder)["waiting"]
    assert not told(folder)["waiting"]
    assert told(folder)["beats"] == 0, "to wait is no progress"


def test_a_long_thing_is_busy_until_the_next_beat(folder: Path) -> None:
    pulse.at(7, Place.SUMS, "adding up")
    pulse.busy("saving a checkpoint", Place.SAVES)
    found = told(folder)
    assert (found["busy"], found["place"], found["step"], found["what"]) == (True, 6, 7, "saving a checkpoint")
    pulse.at_work()
    assert not told(folder)["busy"]


def test_the_time_that_a_hang_is_given_is_the_jobs(folder: Path) -> None:
    assert told(folder)["hang_seconds"] == pulse.PATIENT_SECONDS
    pulse.watched(5)
    assert told(folder)["hang_seconds"] == 5


def test_its_stack_is_written_when_it_is_asked_for(folder: Path) -> None:
    os.kill(os.getpid(), pulse.STACK_SIGNAL)
    stack = pulse.stack_file(folder, 3).read_text()
    assert "test_its_stack_is_written_when_it_is_asked_for" in stack


def test_a_rank_that_ended_well_leaves_nothing_and_whoever_asks_late_does_not_end_it(folder: Path) -> None:
    pulse.end(folder, well=True)
    assert not folder.exists()
    os.kill(os.getpid(), pulse.STACK_SIGNAL)
    pulse.beat()  # nobody looks


def test_a_rank_that_failed_leaves_what_it_was_doing(folder: Path) -> None:
    pulse.at(3, Place.LEARNS, "learning")
    pulse.end()
    assert told(folder)["step"] == 3


CRASH = """
import ctypes, sys
from pathlib import Path
from velocity.distributed import pulse
pulse.begin(Path(sys.argv[1]), 0)
def crash():
    ctypes.string_at(0)
crash()
"""


def test_a_rank_that_crashes_leaves_its_stack(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", CRASH, str(tmp_path)], capture_output=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGSEGV
    assert "in crash" in pulse.stack_file(tmp_path, 0).read_text()


def test_a_beat_costs_microseconds(folder: Path) -> None:
    records, times = [f"train.jsonl:{number}" for number in range(64)], []
    for _ in range(200):
        started = time.perf_counter()
        pulse.working_on(records)
        times.append(time.perf_counter() - started)
    assert min(times) < 2e-4, "a micro-batch takes milliseconds at least"
