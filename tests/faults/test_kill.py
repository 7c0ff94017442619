"""Guarantee 5, at the same size: after kill -9 the run goes on, and its losses are those of a run never killed."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

from tests.commands import losses, processes_naming, start, step_lines, velocity
from tests.making import write_job
from tests.running import prepare_folder

STEPS, EVERY = 60, 7


def _job(folder: Path, output: str) -> Path:
    return write_job(
        folder / f"{output}.yaml",
        output=str(folder / output),
        optimizer={"kind": "adamw", "learning_rate": 1e-3, "warmup": 0.1},
        duration={"steps": STEPS},
        checkpoint={"every": EVERY, "keep": 2},
        strategy={"zero": 2, "precision": "fp32"},
        launch={"processes": 2},
        batch={"rows": 8, "micro": 2},
    )


def _start_until(job: Path, run: Path, step: int) -> subprocess.Popen[str]:
    """The job, running, once `step` is done."""
    process = start("run", job)
    while not step_lines(run) or step_lines(run)[-1]["step"] < step:
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)
    return process


def _kill_behind(job: Path, run: Path, step: int) -> int:
    """Start the job, kill everything of it once `step` is done, and return the last step that was written."""
    process = _start_until(job, run, step)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 10
    while processes_naming(str(run)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not processes_naming(str(run)), "a rank outlived its launcher"
    return int(step_lines(run)[-1]["step"])


def test_losses_after_two_kills_equal_those_of_an_undisturbed_run(tmp_path: Path) -> None:
    prepare_folder(tmp_path)
    undisturbed, killed = _job(tmp_path, "undisturbed"), _job(tmp_path, "killed")
    assert velocity("run", undisturbed).returncode == 0

    choose = random.Random()
    first = _kill_behind(killed, tmp_path / "killed", choose.randint(EVERY + 1, 25))
    second = _kill_behind(killed, tmp_path / "killed", choose.randint(first + EVERY + 1, 50))
    done = velocity("run", killed)

    assert done.returncode == 0, done.stderr
    assert second < STEPS
    assert losses(tmp_path / "killed") == losses(tmp_path / "undisturbed")
    assert [step for step, _, _ in losses(tmp_path / "killed")] == list(range(1, STEPS + 1))
    kept = sorted(path.name for path in (tmp_path / "killed" / "checkpoints").iterdir())
    assert kept == ["step-00000056", "step-00000060"]


def test_one_killed_rank_ends_the_job_and_is_named_last(tmp_path: Path) -> None:
    prepare_folder(tmp_path)
    job, run = _job(tmp_path, "run"), tmp_path / "run"
    process = _start_until(job, run, 2)
    try:
        ranks = processes_naming(f"-m velocity.training.run {run}")
        assert len(ranks) == 2
        os.kill(max(ranks), signal.SIGKILL)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1
    what, where, fix = said.splitlines()[-3:]
    assert what == "error: a process was killed by SIGKILL"
    assert re.fullmatch(r"  where: rank [01] on .+", where)
    assert "memory" in fix
    assert "Traceback" not in said
    assert processes_naming(str(run)) == []
