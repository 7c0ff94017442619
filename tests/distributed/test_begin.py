"""A rank's module is imported undisturbed; what its `main` says is the process's exit status."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

MODULE = """
import gc
importing = gc.isenabled()
def main(*arguments):
    print(*arguments, importing, gc.isenabled(), gc.get_freeze_count() > 1000)
    return 7
"""


def begin(folder: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "velocity.distributed.begin", module, *arguments]
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_the_module_is_imported_without_collecting_and_its_main_runs_with_it(tmp_path: Path):
    (tmp_path / "work.py").write_text(MODULE)
    done = begin(tmp_path, "work", "a", "b")
    assert (done.stdout, done.returncode) == ("a b False True True\n", 7), done.stderr


def test_the_import_itself_loads_nothing_heavy(tmp_path: Path):
    (tmp_path / "light.py").write_text("import sys\ndef main():\n    return int('torch' in sys.modules)\n")
    assert begin(tmp_path, "light").returncode == 0
