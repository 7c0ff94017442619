"""A job starts again after what may not happen twice, at most so many times, and says why it does not."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from velocity.runs.restarts import Answer, Restarts


def cause(step: int | None = 12, **facts: Any) -> dict[str, Any]:
    what = "a process was killed by SIGKILL\n  where: rank 1 on node-2, step 12\n  fix:   memory"
    return {"what": what, "step": step, "exit_status": 1, "kind": "Killed", "errno": None, **facts}


def test_a_killed_rank_starts_the_job_again_so_many_times_at_most() -> None:
    restarts = Restarts(2)
    said = "a process was killed by SIGKILL (rank 1 on node-2, step 12); restart 1 of 2, from the last checkpoint"
    assert restarts.after(cause(12)) == Answer(True, said)
    assert restarts.after(cause(30)).again
    assert restarts.after(cause(40)) == Answer(False, "not started again: launch.max_restarts=2 is used up")
    assert restarts.done == 2


def test_nothing_is_said_where_no_restart_was_asked_for() -> None:
    assert Restarts(0).after(cause()) == Answer(False)


@pytest.mark.parametrize(("step", "when"), [(12, "at step 12"), (None, "before the first step")])
def test_what_fails_twice_of_the_same_at_the_same_step_is_not_started_again(step: int | None, when: str) -> None:
    restarts = Restarts(5)
    assert restarts.after(cause(step)).again
    assert restarts.after(cause(step)) == Answer(False, f"not started again: it failed twice of the same, {when}")


def test_another_cause_or_another_step_is_not_the_same() -> None:
    restarts = Restarts(5)
    hung = "rank 0 has made no progress for 30 min\n  where: rank 0 on node-1, step 12"
    assert all(restarts.after(one).again for one in (cause(12), cause(12, what=hung), cause(12), cause(13)))


@pytest.mark.parametrize(
    "facts",
    [
        {"exit_status": 2, "kind": "UserError"},
        {"kind": "JobError"},  # said on purpose: the gradient is not finite
        {"kind": "MemoryFull"},
        {"kind": "OSError", "errno": errno.ENOSPC},
    ],
)
def test_what_would_fail_in_the_same_way_is_not_started_again(facts: dict[str, Any]) -> None:
    assert Restarts(5).after(cause(**facts)) == Answer(False, "not started again: it would fail in the same way")


@pytest.mark.parametrize("facts", [{"kind": "OSError", "errno": errno.EIO}, {"kind": "DistBackendError"}])
def test_what_may_pass_is(facts: dict[str, Any]) -> None:
    assert Restarts(1).after(cause(**facts)).again


def test_a_job_that_ended_without_a_word_is_started_again() -> None:
    answer = Restarts(1).after(None)
    assert answer == Answer(True, "no rank could say why; restart 1 of 1, from the last checkpoint")
