"""Of several ranks' failures the one that led to the others is the cause; those that followed are marked as peers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch.distributed as dist

from velocity.distributed import failure, pulse
from velocity.distributed.failure import Failure


def test_without_a_failure_there_is_no_cause(tmp_path: Path) -> None:
    assert failure.cause(tmp_path / "failures") is None


def test_the_earliest_failure_is_the_cause(tmp_path: Path) -> None:
    failure.record(tmp_path, 1, Failure("ValueError: the first", exit_status=2, trace="line 3"))
    failure.record(tmp_path, 0, Failure("ValueError: the second"))
    cause = failure.cause(tmp_path)
    assert cause is not None
    assert (cause["what"], cause["rank"], cause["exit_status"]) == ("ValueError: the first", 1, 2)
    assert cause["trace"] == "line 3"
    assert cause["host"] == pulse.host()


def test_a_rank_that_was_killed_is_the_cause_though_its_node_says_so_last(tmp_path: Path) -> None:
    failure.record(tmp_path, 0, Failure("it fails as well"))
    failure.record(tmp_path, 1, Failure("killed by SIGKILL", killed=True))
    cause = failure.cause(tmp_path)
    assert cause is not None and cause["rank"] == 1


def test_a_peer_is_never_the_cause_where_another_rank_has_one_and_is_said_to_have_followed(tmp_path: Path) -> None:
    failure.record(tmp_path, 0, Failure("RuntimeError: connection closed by peer\n  where: here", peer=True))
    failure.record(tmp_path, 1, Failure("ValueError: the cause"))
    failure.record(tmp_path, 2, Failure("ValueError: another"))
    assert [one["rank"] for one in failure.found(tmp_path)] == [1, 2, 0]
    assert failure.followed(tmp_path).splitlines() == [
        f"rank 2 on {pulse.host()} failed, too: ValueError: another",
        f"rank 0 on {pulse.host()} followed: RuntimeError: connection closed by peer",
    ]


def test_where_all_lost_their_peer_the_first_one_has_to_do(tmp_path: Path) -> None:
    failure.record(tmp_path, 1, Failure("connection closed by peer", peer=True))
    failure.record(tmp_path, 0, Failure("connection closed by peer", peer=True))
    cause = failure.cause(tmp_path)
    assert cause is not None and cause["rank"] == 1


@pytest.mark.parametrize(
    ("error", "peer"),
    [
        # as gloo, NCCL and the store say it
        (RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:4711"), True),
        (RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 7200000ms for recv"), True),
        (dist.DistBackendError("NCCL error: remote process exited or there was a network error"), True),
        (dist.DistNetworkError("failed to recv, got 0 bytes"), True),
        (RuntimeError("index out of range in self"), False),
        (ConnectionResetError(104, "Connection reset by peer"), False),  # an object store's
        (ValueError("connection closed by peer"), False),
    ],
)
def test_the_errors_of_a_lost_connection_are_a_peers(error: Exception, peer: bool) -> None:
    assert failure.is_peers(error) == peer


def test_what_the_rank_was_doing_lies_beside_what_it_says(tmp_path: Path) -> None:
    doing = {**pulse.Doing(rank=3, host="node-2", step=12, what="learning").facts(), "records": ["a:1", "a:2"]}
    failure.record(tmp_path, 3, Failure("no"), doing)
    said = json.loads((tmp_path / "rank-0003.json").read_text())
    assert (said["host"], said["step"], said["doing"], said["records"]) == ("node-2", 12, "learning", ["a:1", "a:2"])


def test_a_new_attempt_knows_of_no_failure(tmp_path: Path) -> None:
    failure.record(tmp_path, 3, Failure("the disk is full"))
    for file in (pulse.doing_file(tmp_path, 3), pulse.stack_file(tmp_path, 3)):
        file.write_text("of an earlier attempt")
    failure.forget(tmp_path)
    assert failure.cause(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_what_an_attempt_left_is_kept_apart_from_the_next_one(tmp_path: Path) -> None:
    failure.record(tmp_path, 3, Failure("killed", killed=True))
    failure.set_aside(tmp_path, "attempt-1")
    assert failure.cause(tmp_path) is None
    cause = failure.cause(tmp_path / "attempt-1")
    assert cause is not None and cause["killed"]
    failure.forget(tmp_path)
    assert failure.cause(tmp_path / "attempt-1") is not None
