"""The highest memory of a process, beside what the system says of it."""

from __future__ import annotations

import subprocess
import sys

import pytest


def test_memory_on_a_processor_is_the_highest_that_was_resident():
    code = (
        "import re, torch; from velocity.distributed.memory import memory_gib\n"
        "read = lambda name: int(re.findall(name + r':\\s+(\\d+) kB', open('/proc/self/status').read())[0]) / 2**20\n"
        "before = read('VmRSS')\n"
        "torch.ones(128 << 20)  # half a GiB, freed at once\n"
        "print(before, memory_gib(torch.device('cpu')), read('VmHWM'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, told, highest = map(float, done.stdout.split())
    assert told == pytest.approx(highest, rel=0.02)
    assert told == pytest.approx(before + 0.5, abs=0.05)
