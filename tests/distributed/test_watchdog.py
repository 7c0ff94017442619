"""The rank that hangs is found, named with its stack, and all are ended; one that works for long is left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.ahead import done_ahead
from velocity.distributed import failure, pulse
from velocity.distributed.watchdog import (
    Seen,
    Sign,
    Watchdog,
    behind,
    descendants,
    frames_of,
    in_collective,
    parent_of,
    spoken,
    state_of,
)

STACK = """Thread 0x00007f01 (most recent call first):
  File "/lib/threading.py", line 331 in wait

Current thread 0x00007f02 (most recent call first):
  File "/code/collate.py", line 52 in collate
  File "/code/trainer.py", line 70 in step
"""
WAITING = """Current thread 0x00007f02 (most recent call first):
  File "/lib/torch/distributed/distributed_c10d.py", line 2961 in all_reduce
  File "/code/trainer.py", line 70 in step
"""


def seen(rank: int, state: str = "S", stack: str = "", **doing: Any) -> Seen:
    facts = {"rank": rank, "host": "a", "step": 3, "place": 2, "part": 0, "waiting": False, "what": "learning", **doing}
    return Seen(facts, state, stack)


def test_the_frames_are_those_of_the_thread_that_works_the_innermost_first():
    assert frames_of(STACK) == [("/code/collate.py", "52", "collate"), ("/code/trainer.py", "70", "step")]
    assert frames_of("") == []
    assert seen(0, stack=STACK).frame == "collate.py:52 in collate"


@pytest.mark.parametrize(("stack", "waits"), [(STACK, False), (WAITING, True), ("", False)])
def test_a_rank_in_a_collective_waits(stack: str, waits: bool):
    assert in_collective(stack) == waits


@pytest.mark.parametrize(
    ("ranks", "late"),
    [
        ([seen(0, step=4), seen(1)], [1]),
        ([seen(0, place=3), seen(1)], [1]),
        ([seen(0), seen(1, step=None)], [1]),
        ([seen(0), seen(1, "T", step=4)], [1]),  # that does not run, wherever it is
        ([seen(0, part=4, stack=STACK), seen(1, part=3, stack=WAITING)], [1]),
        ([seen(0, part=4, stack=STACK), seen(1, stack=WAITING)], [0]),  # a stage of a pipeline, which counts no parts
        ([seen(0, stack=WAITING), seen(1, stack=STACK)], [1]),
        ([seen(0, waiting=True), seen(1)], [1]),
        ([seen(0, stack=WAITING), seen(1, stack=STACK), seen(2, stack=STACK)], [1, 2]),
        ([seen(0, stack=WAITING), seen(1, stack=WAITING)], [0, 1]),  # nothing tells them apart
    ],
)
def test_the_rank_behind_is_the_one_that_the_others_wait_for(ranks: list[Seen], late: list[int]):
    assert [one.rank for one in behind(ranks)] == late


def test_what_is_said_of_it_is_where_it_was_or_why_it_does_not_run():
    assert seen(1, stack=STACK).why("30 min") == (
        "rank 1 has made no progress for 30 min; it was in collate.py:52 in collate"
    )
    assert seen(1, "T").why("8 s") == "rank 1 has made no progress for 8 s: it is stopped by a signal (state T)"
    assert seen(1, "").why("8 s") == "rank 1 has made no progress for 8 s: it is gone"
    assert seen(1).why("8 s") == "rank 1 has made no progress for 8 s, while learning"
    assert [spoken(1800.0), spoken(90.0), spoken(0.5)] == ["30 min", "90 s", "0 s"]


@pytest.mark.parametrize(
    ("before", "now", "alive"),
    [
        (Sign(1, False), Sign(2, False), True),  # a beat
        (Sign(1, False, 0), Sign(1, False, 9000), False),  # in a step a processor may spin in a collective
        (Sign(1, True, 0), Sign(1, True, 9000), True),  # while it loads it works
        (Sign(1, True, 0), Sign(1, True, 190), False),  # 2 of 100 ticks a second, in 100 seconds, are 200
        (Sign(1, True, 0), Sign(1, True, 210), True),
        (Sign(1, True), Sign(1, True, bytes=2 << 20), False),  # 20 KB a second: threads that look after something
        (Sign(1, True), Sign(1, True, bytes=8 << 20), True),
        (Sign(1, True), Sign(1, True, faults=101), True),
        (Sign(1, True), Sign(1, True), False),
        (Sign(1, True), Sign(1, False), True),  # now it waits: it was done with something
        (None, Sign(1, False), True),
    ],
)
def test_the_signs_of_life_are_beats_and_while_it_is_busy_what_it_uses(before: Sign | None, now: Sign, alive: bool):
    assert now.gets_on(before, 100.0) == alive


def test_a_moments_work_is_no_sign_of_life():
    # at most 10 ticks, 1 MiB and 10 pages, however short the moment
    assert not Sign(1, True, 10, 1 << 20, 10).gets_on(Sign(1, True), 0.3)
    assert Sign(1, True, 11).gets_on(Sign(1, True), 0.3)


def test_a_process_is_known_by_its_state_its_parent_and_those_that_it_started():
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            assert parent_of(process.pid) == os.getpid()
            assert process.pid in descendants(os.getpid())
            process.send_signal(signal.SIGSTOP)
            deadline = time.monotonic() + 10
            while state_of(process.pid) != "T" and time.monotonic() < deadline:
                time.sleep(0.01)
            assert state_of(process.pid) == "T"
        finally:
            process.kill()
    assert (state_of(process.pid), parent_of(process.pid)) == ("", None)


WORKER = """
import os, signal, sys, time
from pathlib import Path
from velocity.distributed import pulse
from velocity.distributed.pulse import Place
folder, rank, wish = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
def stuck():
    time.sleep(60)
def wait():
    time.sleep(60)
def work(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
pulse.begin(folder, rank)
pulse.watched(1.0)
if wish == "loads":
    pulse.busy("loading")
    work(3) if rank == 0 else time.sleep(3)
elif wish == "beats":
    for step in range(30):
        pulse.at(step, Place.LEARNS, "learning")
        time.sleep(0.1)
elif wish == "loads for ever":
    pulse.busy("loading")
    time.sleep(60)
else:
    pulse.at(7, Place.LEARNS, "learning", [f"data.jsonl:{rank}"])
    if rank == 0:
        wait()
    if wish == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    stuck()
pulse.end(folder, well=True)
"""


@contextmanager
def workers(folder: Path, wish: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Two ranks, of which the second one is the one that hangs."""
    command = [sys.executable, "-c", WORKER, str(folder)]
    started = [subprocess.Popen([*command, str(rank), wish], text=True) for rank in range(2)]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


Watched = tuple[list[dict[str, Any]], list[int], bool]


def watch(folder: Path, wish: str) -> Watched:
    """The failures that are said, the exit statuses of the ranks, and whether the watchdog ended them."""
    watchdog = Watchdog(folder)
    if wish == "stuck, behind another machine's":
        folder.mkdir()
        elsewhere = pulse.Doing(rank=5, pid=1, host="node-2", step=6).facts()
        pulse.doing_file(folder, 5).write_text(json.dumps(elsewhere))
    with workers(folder, wish) as ranks:
        watchdog.start()
        statuses = [process.wait(timeout=30) for process in ranks]
        watchdog.stop()
        watchdog.join(timeout=30)
    return failure.found(folder), statuses, watchdog.fired


WISHES = ["stuck", "stopped", "loads for ever", "loads", "beats", "stuck, behind another machine's"]
Watches = Callable[[str], Watched]


@pytest.fixture(name="watches", scope="module")
def _watches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watches]:
    """Two ranks and their watchdog for each wish, all at the same time: mostly they sleep."""
    folder = tmp_path_factory.mktemp("watched")
    work = {wish: partial(watch, folder / str(number), wish) for number, wish in enumerate(WISHES)}
    with done_ahead(work, len(WISHES)) as watches:
        yield watches


def test_a_rank_that_hangs_is_named_with_its_stack_and_the_others_waited_for_it(watches: Watches):
    (first, second), statuses, fired = watches("stuck")
    assert fired and statuses == [-signal.SIGKILL] * 2
    assert (first["rank"], first["hung"], first["peer"], first["exit_status"]) == (1, True, False, 1)
    what, where, fix = first["what"].splitlines()
    assert what == "rank 1 has made no progress for 1 s; it was in <string>:8 in stuck"
    assert where == f"  where: rank 1 on {pulse.host()}, step 7, records data.jsonl:1"
    assert fix.startswith("  fix:   its stack lies in ") and "stack-0001.txt" in fix
    assert "in stuck" in first["trace"]
    assert (first["step"], first["records"]) == (7, ["data.jsonl:1"])
    assert (second["rank"], second["peer"], second["what"]) == (0, True, f"it waited for rank 1 on {pulse.host()}")


def test_a_rank_that_was_stopped_is_named_and_has_no_stack(watches: Watches):
    (first, second), statuses, _ = watches("stopped")
    assert statuses == [-signal.SIGKILL] * 2
    assert first["what"].startswith("rank 1 has made no progress for 1 s: it is stopped by a signal (state T)\n")
    assert (first["trace"], second["peer"]) == ("", True)
    assert "no stack" in first["what"].splitlines()[2]


def test_where_nothing_tells_the_ranks_apart_all_are_named(watches: Watches):
    found, statuses, _ = watches("loads for ever")
    assert statuses == [-signal.SIGKILL] * 2
    assert [(one["rank"], one["hung"]) for one in found] == [(0, True), (1, True)]


@pytest.mark.parametrize("wish", ["loads", "beats"])
def test_ranks_that_get_on_are_left_alone(watches: Watches, wish: str):
    assert watches(wish) == ([], [0, 0], False)


def test_what_ranks_of_other_machines_say_decides_who_is_behind_and_none_of_them_is_ended(watches: Watches):
    found, statuses, _ = watches("stuck, behind another machine's")
    assert statuses == [-signal.SIGKILL] * 2
    assert [(one["rank"], one["peer"]) for one in found] == [(0, True), (1, True)]
    assert found[0]["what"] == "it waited for rank 5 on node-2"
