"""What a family of jobs does with its mirror."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from tests.checkpoints.test_commit import made
from velocity.start import families


def test_a_complete_run_that_was_killed_while_it_sent_its_end_sends_it_when_it_is_asked_for_again(tmp_path: Path):
    run, mirror = tmp_path / "run", tmp_path / "mirror"
    made(run / "checkpoints", 4)
    (run / "metrics.jsonl").write_text("{}\n")
    (run / "checkpoints" / ".mirror.here").mkdir()
    job = SimpleNamespace(output=str(run), checkpoint=SimpleNamespace(mirror=str(mirror)))
    families._rest_to_mirror(cast(Any, job))
    assert (mirror / "step-00000004" / "COMMITTED").is_file() and (mirror / "run" / "metrics.jsonl").is_file()
    (mirror / "run" / "metrics.jsonl").unlink()
    shutil.rmtree(run / "checkpoints" / ".mirror.here", ignore_errors=True)
    families._rest_to_mirror(cast(Any, job))
    assert not (mirror / "run" / "metrics.jsonl").exists(), "nothing was left to send"
