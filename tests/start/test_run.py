"""After an attempt: done, once more, or the error that the job ends with."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from velocity.config.load import load_job
from velocity.config.training import TrainingJob
from velocity.distributed import failure, pulse
from velocity.distributed.failure import Failure
from velocity.errors import InterruptedRun, JobError, MemoryFull, UserError
from velocity.launch import local
from velocity.planner.hardware import Hardware
from velocity.planner.machines import Cluster
from velocity.runs.folder import RunFolder
from velocity.start import run as module
from velocity.start import verdict
from velocity.start.crew import Alone
from velocity.start.families import FAMILIES

Attempts = Callable[..., tuple[bool, int]]


def test_the_command_that_starts_ranks_imports_no_torch_before_it_has_to():
    code = "import sys, velocity.start.run; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.fixture(name="attempts")
def _attempts(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attempts:
    """Starts a job whose attempts end as they are told to: whether a stop came, and how many there were."""

    def begin(*ends: Failure | None, restarts: int = 0, asked: bool = False) -> tuple[bool, int]:
        loaded = load_job(tmp_path / "job.yaml", ["launch.processes=1", f"launch.max_restarts={restarts}"])
        left = list(ends)

        def attempt(*_: object, **__: object) -> local.Ended:
            failure.forget(run.failures)
            run.set_status("running")
            end = left.pop(0)
            if end is None:
                run.model.mkdir()
                run.set_status("complete")
                return local.Ended(0, asked)
            at = {**pulse.Doing(rank=1, host="node-2", step=len(left)).facts()}
            failure.record(run.failures, 1, end, at)
            return local.Ended(end.exit_status, asked)

        monkeypatch.setattr(module, "_attempt", attempt)
        monkeypatch.setattr(module, "_thriftier", lambda *_: loaded if len(left) == 1 else None)
        cluster = Cluster(Hardware(2, 8.0, cpu_bf16=False))
        begun = module.Start(loaded, loaded, cast(Any, None), cluster, tmp_path, fresh=False, started=0.0)
        stop = module._attempts(begun, Alone())
        assert not left
        return stop, len(ends)

    return begin


KILLED = Failure("a process was killed by SIGKILL\n  where: rank 1 on node-2\n  fix:   memory", killed=True)
FULL = Failure("the host's memory is full\n  where: rank 1 on node-2, step 9\n  fix:   less", kind="MemoryFull")


def test_a_job_that_lost_a_rank_starts_again_and_says_so(attempts: Attempts, run: RunFolder, capsys: Any):
    assert attempts(KILLED, KILLED, None, restarts=2) == (False, 3)
    said = capsys.readouterr().err
    assert "killed by SIGKILL (rank 1 on node-2); restart 1 of 2, from the last checkpoint" in said
    assert "restart 2 of 2" in said
    first = failure.cause(run.failures / "attempt-1")
    assert first is not None and first["killed"]


def test_a_job_that_keeps_losing_ranks_fails_with_the_last_cause(attempts: Attempts, capsys: Any):
    with pytest.raises(JobError, match="killed by SIGKILL"):
        attempts(KILLED, KILLED, restarts=1)
    assert "not started again: launch.max_restarts=1 is used up" in capsys.readouterr().err


def test_without_restarts_the_first_failure_ends_the_job(attempts: Attempts):
    with pytest.raises(JobError, match="killed by SIGKILL"):
        attempts(KILLED)


def test_a_job_that_was_asked_to_stop_does_not_start_again(attempts: Attempts, capsys: Any):
    with pytest.raises(JobError, match="killed by SIGKILL"):
        attempts(KILLED, restarts=3, asked=True)
    assert "started again" not in capsys.readouterr().err


def test_memory_that_runs_out_again_names_the_strategy_that_would_fit(
    attempts: Attempts, monkeypatch: pytest.MonkeyPatch
):
    family = replace(FAMILIES[TrainingJob], roomier=lambda *_: "ZeRO 3, micro 1 would fit")
    monkeypatch.setattr(verdict, "family_of", lambda job: family)
    with pytest.raises(MemoryFull) as caught:
        attempts(FULL, FULL)  # the second time with the thriftier plan
    assert str(caught.value).splitlines() == [
        "the host's memory is full", "  where: rank 1 on node-2, step 9", "  fix:   ZeRO 3, micro 1 would fit",
    ]  # fmt: skip


def test_where_the_planner_knows_no_strategy_the_ranks_own_remedy_stands(
    attempts: Attempts, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(verdict, "family_of", lambda job: replace(FAMILIES[TrainingJob], roomier=lambda *_: None))
    with pytest.raises(MemoryFull, match="fix:   less"):
        attempts(FULL)


def ends_with(error: Exception | None, run: RunFolder, state: str, *, asked: bool = False) -> Callable[..., bool]:
    def attempts(*_: object) -> bool:
        run.set_status(state)
        if error is not None:
            raise error
        return asked

    return attempts


@pytest.fixture(name="start")
def _start(tmp_path: Path, run: RunFolder) -> module.Start:
    loaded = load_job(tmp_path / "job.yaml", ["launch.processes=1"])
    cluster = Cluster(Hardware(2, 8.0, cpu_bf16=False))
    return module.Start(loaded, loaded, cast(Any, None), cluster, tmp_path, fresh=False, started=0.0)


@pytest.mark.parametrize(
    ("error", "state"),
    [(None, "complete"), (JobError("it broke"), "failed"), (InterruptedRun("stopped"), "interrupted")],
)
def test_however_a_run_ends_it_leaves_its_report(
    start: module.Start, run: RunFolder, monkeypatch: pytest.MonkeyPatch, error: Exception | None, state: str
):
    monkeypatch.setattr(module, "_attempts", ends_with(error, run, state))
    with contextlib.suppress(JobError, InterruptedRun):
        module._reported(start, Alone())
    assert f">{state}</span>" in (run.path / "report.html").read_text()


def test_a_folder_of_another_job_gets_no_report(start: module.Start, run: RunFolder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_attempts", ends_with(UserError("another job's"), run, "complete"))
    with pytest.raises(UserError):
        module._reported(start, Alone())
    assert not (run.path / "report.html").exists()


def test_a_report_that_cannot_be_made_changes_no_result_and_a_stop_meanwhile_is_kept(
    start: module.Start, run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    run.job.write_text("no job")  # nothing to make a report of
    monkeypatch.setattr(module, "_attempts", ends_with(None, run, "complete"))
    assert module._reported(start, Alone()) is False
    monkeypatch.setattr(module, "_attempts", ends_with(JobError("it broke"), run, "failed"))
    with pytest.raises(JobError, match="it broke"):
        module._reported(start, Alone())
    assert capsys.readouterr().err.count("WARNING: no report.html") == 2
    monkeypatch.setattr(module, "_attempts", ends_with(None, run, "complete"))
    monkeypatch.setattr(module, "report_end", lambda folder: True)
    assert module._reported(start, Alone()) is True
