"""What is imported is not looked through for garbage, and all that comes after it is."""

from __future__ import annotations

import subprocess
import sys

SAYS = """
import gc
from velocity.garbage import importing

class Circle:
    ended = 0
    def __init__(self):
        self.itself = self
    def __del__(self):
        Circle.ended += 1

try:
    with importing():
        early = [Circle() for _ in range(3_000)]
        assert not gc.isenabled()
        raise ImportError
except ImportError:
    pass
assert gc.isenabled()
kept = gc.get_freeze_count()
assert kept > 3_000, kept
del early
gc.collect()
assert Circle.ended == 0, "frozen"
for _ in range(3_000):
    Circle()
assert Circle.ended > 1_000, "collected by itself, as before"
assert gc.get_threshold()[0] < 10_000
"""

SELDOM = """
import gc
from velocity.cli import main

try:
    main(["--help"])
except SystemExit:
    pass
assert gc.isenabled() and gc.get_freeze_count() == 0
assert gc.get_threshold()[0] == 100_000
"""


def ends_well(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_imported_stays_and_later_garbage_is_collected_as_before_also_after_an_import_that_failed():
    ends_well(SAYS)


def test_a_command_collects_seldom():
    ends_well(SELDOM)
