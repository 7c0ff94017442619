"""A process that was started for another one ends with it, and hears when it is to stop, however early."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.commands import processes_naming
from velocity.process import PARENT, STOPS, as_parent, children, end_all, stops_wait


def test_a_process_dies_with_its_parent():
    mark = f"orphan-{os.getpid()}"
    child = (
        "import time; from velocity.process import die_with_parent\n"
        f"die_with_parent(); print('ready', flush=True); time.sleep(60)  # {mark}"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 10
    while processes_naming(mark) and time.monotonic() < deadline:
        time.sleep(0.02)
    left = processes_naming(mark)
    for number in left:
        os.kill(number, signal.SIGKILL)
    assert not left, "the child outlived its parent"


def test_a_process_whose_parent_died_before_it_asked_ends_at_once():
    text = "from velocity.process import die_with_parent; die_with_parent(); print('alive')"
    environments = [as_parent(), {PARENT: str(os.getppid())}]  # our child; one that another process started
    ended = [
        subprocess.run([sys.executable, "-c", text], env={**os.environ, **told}, capture_output=True, check=False)
        for told in environments
    ]
    assert [done.returncode for done in ended] == [0, -signal.SIGKILL]
    assert [done.stdout for done in ended] == [b"alive\n", b""]


SLOW_STARTER = """
import sys, time
print("begun", flush=True)
sys.stdin.readline()  # as long as an import lasts
from velocity.process import hear_stops, ignore_stops
heard = []
hear_stops(heard.append)
print("heard", heard, flush=True)
ignore_stops()
sys.stdin.readline()
sys.exit(7)
"""


@pytest.mark.parametrize("number", STOPS)
def test_who_is_asked_to_stop_before_it_listens_hears_of_it_then_and_later_is_deaf(number: signal.Signals):
    with stops_wait():
        process = subprocess.Popen(
            [sys.executable, "-c", SLOW_STARTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    assert process.stdin and process.stdout
    try:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(number)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == f"heard [{int(number)}]\n"
        process.send_signal(number)
        assert process.communicate("\n", timeout=30)[0] == ""
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 7


def test_what_waits_for_us_meanwhile_reaches_us_afterwards():
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: heard.append(number))
    try:
        with stops_wait():
            signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)  # other tests' threads have masks of their own
            assert heard == []
        assert heard == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_process_is_ended_with_all_that_it_started_though_they_would_not(tmp_path: Path):
    mark = f"family-{os.getpid()}"
    deaf = "import signal; [signal.signal(number, signal.SIG_IGN) for number in (2, 10, 15)]"
    grandchild = f"{deaf}; import time; open({str(tmp_path / 'there')!r}, 'w').close(); time.sleep(60)  # {mark}"
    child = f"{deaf}; import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    process = subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "there").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process.pid in children(os.getpid())
        assert len(children(process.pid)) == 1
        begun = time.monotonic()
        end_all(process.pid)
        assert time.monotonic() - begun < 2
        assert process.wait(timeout=5) == -signal.SIGKILL
        assert processes_naming(mark) == []
    finally:
        process.kill()
        for number in processes_naming(mark):
            os.kill(number, signal.SIGKILL)
