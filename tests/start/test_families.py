"""What a family of jobs does with its mirror."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.checkpoints.test_commit import made
from velocity.checkpoints.mirror import Mirror
from velocity.config.sections import CheckpointConfig
from velocity.start import families


def _job(run: Path, mirror: Path, **checkpoint: Any) -> Any:
    return SimpleNamespace(output=str(run), checkpoint=CheckpointConfig(mirror=str(mirror), **checkpoint))


def test_a_complete_run_that_was_killed_while_it_sent_its_end_sends_it_when_it_is_asked_for_again(tmp_path: Path):
    run, mirror = tmp_path / "run", tmp_path / "mirror"
    made(run / "checkpoints", 4)
    (run / "metrics.jsonl").write_text("{}\n")
    (run / "checkpoints" / ".mirror.here").mkdir()
    job = _job(run, mirror)
    families._rest_to_mirror(job)
    assert (mirror / "step-00000004" / "COMMITTED").is_file() and (mirror / "run" / "metrics.jsonl").is_file()
    (mirror / "run" / "metrics.jsonl").unlink()
    shutil.rmtree(run / "checkpoints" / ".mirror.here", ignore_errors=True)
    families._rest_to_mirror(job)
    assert not (mirror / "run" / "metrics.jsonl").exists(), "nothing was left to send"


def test_what_is_sent_later_lets_the_mirror_keep_as_many_as_the_run_would(tmp_path: Path):
    run, mirror = tmp_path / "run", tmp_path / "mirror"
    best = {"step": 1, "eval": {"unseen": {"loss": 1.0}}}
    for step in (1, 2, 3, 4):
        made(run / "checkpoints", step)
        (run / "metrics.jsonl").write_text(json.dumps(best) + "\n")
        assert Mirror(str(mirror), run, first=True, kept=list).finish(60) == []  # killed each time before it pruned
    (run / "checkpoints" / ".mirror.here").mkdir()
    families._rest_to_mirror(_job(run, mirror, keep=2, best="unseen"))
    assert [path.name for path in sorted(mirror.glob("step-*"))] == ["step-00000001", "step-00000003", "step-00000004"]
