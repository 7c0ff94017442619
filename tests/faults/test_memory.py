"""Memory that runs out in the first steps: the next thriftier plan is tried once, and said. The limit is a real one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.commands import step_lines
from tests.making import tiny_model_folder, write_job, write_jsonl

LIMIT = 1_300_000_000  # bytes of a process's own memory: above what imports take, below kept activations


def _run_short_of_memory(folder: Path, **sections: Any) -> subprocess.CompletedProcess[str]:
    """A job whose activations do not fit; with them computed again it does."""
    tiny_model_folder(folder / "model", layers=48)
    write_jsonl(folder / "train.jsonl", [{"text": "Check the length of every input. " * 250} for _ in range(40)])
    job = write_job(
        folder / "job.yaml",
        task="pretrain",
        data={"sequence_length": 5120},
        batch={"rows": 1},
        duration={"steps": 1},
        **sections,
    )
    command = ["prlimit", f"--data={LIMIT}", sys.executable, "-m", "velocity", "run", str(job)]
    return subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)


@pytest.mark.slow
def test_where_memory_runs_out_a_thriftier_plan_is_tried_once_and_said(tmp_path: Path) -> None:
    done = _run_short_of_memory(tmp_path, strategy={"precision": "fp32"})
    assert done.returncode == 0, done.stderr
    assert "the host's memory is full; once more, with a thriftier plan" in done.stderr
    assert "layers recomputed" in done.stderr.split("once more")[1]
    assert len(step_lines(tmp_path / "run")) == 1
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["chosen"]["strategy"]["recompute"] == "layers"


@pytest.mark.slow
def test_where_the_job_leaves_nothing_open_the_strategy_that_would_fit_is_named(tmp_path: Path) -> None:
    done = _run_short_of_memory(tmp_path, strategy={"precision": "fp32", "zero": 0, "recompute": "none"})
    assert done.returncode == 1, done.stderr
    what, where, fix = done.stderr.splitlines()[-3:]
    assert what == "error: the host's memory is full"
    assert where.startswith("  where: rank 0 on ") and ", step 1, records " in where
    assert fix.startswith("  fix:   ZeRO ") and "recompute layers" in fix
    assert fix.endswith(" would fit: the same command with strategy.recompute=layers")
    assert "once more" not in done.stderr
