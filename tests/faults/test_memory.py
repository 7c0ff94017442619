"""Memory that runs out in the first steps: the next thriftier plan is tried once, and said. The limit is a real one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import step_lines
from tests.making import tiny_model_folder, write_job, write_jsonl

LIMIT = 1_300_000_000  # bytes of a process's own memory: above what imports take, below kept activations


@pytest.mark.slow
def test_where_memory_runs_out_a_thriftier_plan_is_tried_once_and_said(tmp_path: Path) -> None:
    tiny_model_folder(tmp_path / "model", layers=48)
    write_jsonl(tmp_path / "train.jsonl", [{"text": "Check the length of every input. " * 250} for _ in range(40)])
    job = write_job(
        tmp_path / "job.yaml",
        task="pretrain",
        data={"sequence_length": 5120},
        batch={"rows": 1},
        duration={"steps": 1},
        strategy={"precision": "fp32"},
    )
    command = ["prlimit", f"--data={LIMIT}", sys.executable, "-m", "velocity", "run", str(job)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    assert "the host's memory is full; once more, with a thriftier plan" in done.stderr
    assert "layers recomputed" in done.stderr.split("once more")[1]
    assert len(step_lines(tmp_path / "run")) == 1
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["chosen"]["strategy"]["recompute"] == "layers"
