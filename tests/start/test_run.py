"""After an attempt: done, once more, or the error that the job ends with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from velocity.config.load import load_job
from velocity.config.training import TrainingJob
from velocity.distributed import failure, pulse
from velocity.distributed.failure import Failure
from velocity.errors import JobError, MemoryFull
from velocity.launch import local
from velocity.planner.hardware import Hardware
from velocity.planner.machines import Cluster
from velocity.runs.folder import RunFolder
from velocity.start import run as module
from velocity.start import verdict
from velocity.start.crew import Alone
from velocity.start.families import FAMILIES

Attempts = Callable[..., tuple[bool, int]]


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
