"""A process that was started for another one ends with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from tests.commands import processes_naming
from velocity.process import PARENT, as_parent


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
