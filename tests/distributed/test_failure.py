"""Of several ranks' failures the one that led to the others is the cause."""

from __future__ import annotations

from pathlib import Path

from velocity.distributed import failure


def test_without_a_failure_there_is_no_cause(tmp_path: Path) -> None:
    assert failure.cause(tmp_path / "failures") is None


def test_the_earliest_failure_is_the_cause(tmp_path: Path) -> None:
    failure.record(tmp_path, 1, "ValueError: the first", exit_status=2, trace="line 3")
    failure.record(tmp_path, 0, "connection closed by peer")
    cause = failure.cause(tmp_path)
    assert cause is not None
    assert (cause["what"], cause["rank"], cause["exit_status"]) == ("ValueError: the first", 1, 2)
    assert cause["trace"] == "line 3"
    assert cause["host"] == failure.host()


def test_a_rank_that_was_killed_is_the_cause_though_its_node_says_so_last(tmp_path: Path) -> None:
    failure.record(tmp_path, 0, "connection closed by peer")
    failure.record(tmp_path, 1, "killed by SIGKILL", killed=True)
    cause = failure.cause(tmp_path)
    assert cause is not None and cause["rank"] == 1


def test_a_new_attempt_knows_of_no_failure(tmp_path: Path) -> None:
    failure.record(tmp_path, 3, "the disk is full")
    failure.forget(tmp_path)
    assert failure.cause(tmp_path) is None
