"""Guarantee 5, at the same size: after kill -9 the run goes on, and its losses are those of a run never killed."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.ahead import done_ahead
from tests.commands import losses, processes_naming, start, step_lines, velocity
from tests.making import write_job
from tests.running import prepare_folder

STEPS, EVERY = 60, 7


def _job(folder: Path, output: str, **launch: int) -> Path:
    return write_job(
        folder / f"{output}.yaml",
        output=str(folder / output),
        optimizer={"kind": "adamw", "learning_rate": 1e-3, "warmup": 0.1},
        duration={"steps": STEPS},
        checkpoint={"every": EVERY, "keep": 2},
        strategy={"zero": 2, "precision": "fp32"},
        launch={"processes": 2, **launch},
        batch={"rows": 8, "micro": 2},
    )


def _start_until(job: Path, run: Path, step: int, *overrides: str) -> subprocess.Popen[str]:
    """The job, running, once `step` is done; one that was killed before its first checkpoint begins without a line."""
    process = start("run", job, *overrides)
    while not step_lines(run) or step_lines(run)[-1]["step"] < step:
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)
    return process


def _kill_behind(job: Path, run: Path, step: int) -> int:
    """Start the job, kill everything of it once `step` is done, and return the last step that was written."""
    _kill(_start_until(job, run, step), run)
    return int(step_lines(run)[-1]["step"])


def _kill(process: subprocess.Popen[str], run: Path) -> None:
    """All processes of the job, which are gone then."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 10
    while processes_naming(str(run)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not processes_naming(str(run)), "a rank outlived its launcher"


def undisturbed(folder: Path) -> None:
    done = velocity("run", _job(folder, "undisturbed"))
    assert done.returncode == 0, done.stderr


def killed_twice(folder: Path) -> int:
    """The step of the second kill."""
    job, run = _job(folder, "killed"), folder / "killed"
    choose = random.Random()
    first = _kill_behind(job, run, choose.randint(EVERY + 1, 25))
    second = _kill_behind(job, run, choose.randint(first + EVERY + 1, 50))
    done = velocity("run", job)
    assert done.returncode == 0, done.stderr
    return second


def mirrored(folder: Path) -> str:
    """Its disk is lost with the machine once the mirror has a checkpoint: what the next attempt says."""
    job, run = _job(folder, "mirrored"), folder / "mirrored"
    override = f"checkpoint.mirror={folder / 'mirror'}"
    process = start("run", job, override)
    while not list((folder / "mirror").glob("step-*/COMMITTED")):
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)
    _kill(process, run)
    shutil.rmtree(run)
    done = velocity("run", job, override)
    assert done.returncode == 0, done.stderr
    return done.stderr


def elastic(folder: Path) -> None:
    """At two processes, at one, at two again, each with another stage."""
    job, run = _job(folder, "elastic"), folder / "elastic"
    first = _kill_behind(job, run, EVERY + 1)
    _kill(_start_until(job, run, first + EVERY + 1, "launch.processes=1", "strategy.zero=1"), run)
    done = velocity("run", job, "strategy.zero=3")
    assert done.returncode == 0, done.stderr


def restarted(folder: Path) -> str:
    """One rank is killed, and the job may start again once: what it says."""
    return _kill_a_rank(
        _job(folder, "restarted", max_restarts=1), folder / "restarted", EVERY + 2, status=0, seconds=240
    )


def ended(folder: Path) -> str:
    """One rank is killed: what the job says."""
    return _kill_a_rank(_job(folder, "ended"), folder / "ended", 2, status=1, seconds=60)


def _kill_a_rank(job: Path, run: Path, step: int, *, status: int, seconds: float) -> str:
    process = _start_until(job, run, step)
    try:
        ranks = processes_naming(f"begin velocity.training.run {run}")
        assert len(ranks) == 2
        os.kill(max(ranks), signal.SIGKILL)
        _, said = process.communicate(timeout=seconds)
    finally:
        process.kill()
    assert process.returncode == status, said
    assert processes_naming(str(run)) == []
    return said


Ahead = Callable[[str], Any]
Losses = list[tuple[int, float, float]]


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and data."""
    return prepare_folder(tmp_path_factory.mktemp("kill"))


@pytest.fixture(name="jobs", scope="module")
def _jobs(folder: Path) -> Iterator[Ahead]:
    work = (undisturbed, killed_twice, mirrored, elastic, restarted, ended)
    with done_ahead({piece.__name__: partial(piece, folder) for piece in work}) as jobs:
        yield jobs


@pytest.fixture(name="expected", scope="module")
def _expected(folder: Path, jobs: Ahead) -> Losses:
    """The losses of a job that nobody disturbed."""
    jobs("undisturbed")
    return losses(folder / "undisturbed")


def test_losses_after_two_kills_equal_those_of_an_undisturbed_run(folder: Path, jobs: Ahead, expected: Losses) -> None:
    assert jobs("killed_twice") < STEPS
    assert losses(folder / "killed") == expected
    assert [step for step, _, _ in expected] == list(range(1, STEPS + 1))
    kept = sorted(path.name for path in (folder / "killed" / "checkpoints").iterdir())
    assert kept == ["step-00000056", "step-00000060"]


def test_a_machine_that_has_the_job_file_alone_goes_on_from_the_mirror_to_the_same_model(
    folder: Path, jobs: Ahead, expected: Losses
) -> None:
    assert "fetching step-" in jobs("mirrored")
    assert losses(folder / "mirrored") == expected
    weights = [(folder / name / "model" / "model.safetensors").read_bytes() for name in ("mirrored", "undisturbed")]
    assert weights[0] == weights[1]


def test_it_goes_on_with_one_process_at_another_stage_and_back_with_the_same_losses(
    folder: Path, jobs: Ahead, expected: Losses
) -> None:
    jobs("elastic")
    for ours, theirs in zip(losses(folder / "elastic"), expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)


def test_a_job_whose_rank_is_killed_starts_again_by_itself_and_ends_with_the_same_losses(
    folder: Path, jobs: Ahead, expected: Losses
) -> None:
    said, run = jobs("restarted"), folder / "restarted"
    named = r"a process was killed by SIGKILL \(rank [01] on \S+, step \d+, .+\); restart 1 of 1, from the last"
    assert len(re.findall(named, said)) == 1, said
    assert losses(run) == expected
    assert [one["step"] for one in step_lines(run)] == list(range(1, STEPS + 1))
    (killed,) = [file for file in (run / "failures" / "attempt-1").glob("rank-*.json") if "SIGKILL" in file.read_text()]
    assert json.loads(killed.read_text())["killed"]


def test_one_killed_rank_ends_the_job_and_is_named_last(jobs: Ahead) -> None:
    said = jobs("ended")
    what, where, fix = said.splitlines()[-3:]
    assert what == "error: a process was killed by SIGKILL"
    assert re.fullmatch(r"  where: rank [01] on \S+, step \d+, .+", where)
    assert "memory" in fix
    assert "Traceback" not in said
