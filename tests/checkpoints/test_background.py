"""A checkpoint that two ranks write in the background: committed when both have, and not at all where one could not."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from tests.pool import Pool
from velocity.checkpoints.background import STATE, Writer
from velocity.checkpoints.commit import committed, damage, manifest_of, name_of, temporary_of
from velocity.checkpoints.pieces import part_of
from velocity.distributed.comm import Board, Ranks, wait_for_all


def written(ranks: Ranks, checkpoints: Path, slow: int, broken: int) -> tuple[str, int, float]:
    """How it went for a rank; the rank `slow` begins later than the others, and `broken` cannot write."""
    final = checkpoints / name_of(4)
    temporary_of(final).mkdir(parents=True, exist_ok=True)
    if ranks.rank == broken:
        (temporary_of(final) / part_of(ranks.rank, 0)).mkdir()
    pieces = [(f"p{ranks.rank}|weight||0", torch.arange(10.0))]
    writer = Writer(final, [pieces, pieces], {"step": 4}, ranks, Board(ranks), time.perf_counter())
    if ranks.rank == slow:
        time.sleep(0.5)
    writer.start()
    report = writer.wait()
    assert writer.ended
    wait_for_all()
    return report.trouble, report.bytes, report.seconds


def test_it_is_committed_when_the_slowest_rank_has_written(pool: Pool, tmp_path: Path) -> None:
    first, second = pool(written, tmp_path, 1, -1)
    (folder,) = committed(tmp_path)
    assert damage(folder) is None
    names = {part_of(rank, number) for rank in (0, 1) for number in (0, 1)}
    assert set(manifest_of(folder)) == {*names, STATE}
    sizes = sum(entry.size for entry in manifest_of(folder).values())
    assert first[:2] == ("", sizes) and first[2] >= 0.5, "the first rank knows when all have ended"
    assert second[0] == ""


@pytest.mark.parametrize("broken", [0, 1])
def test_a_rank_that_cannot_write_leaves_no_checkpoint_and_nothing_half_written(
    pool: Pool, tmp_path: Path, broken: int
) -> None:
    trouble, size, _ = pool(written, tmp_path, 1, broken)[0]
    assert "Is a directory" in trouble and f"(rank {broken})" in trouble and size == 0
    assert not list(tmp_path.iterdir())


def written_twice(ranks: Ranks, checkpoints: Path) -> list[str]:
    """How a save went that one rank could not write, and the next one of the same step, by the same ranks."""
    final, board, troubles = checkpoints / name_of(4), Board(ranks), []
    for broken in (True, False):
        temporary_of(final).mkdir(parents=True, exist_ok=True)
        if broken and ranks.first:
            (temporary_of(final) / part_of(0, 0)).mkdir()
        wait_for_all()
        pieces = [(f"p{ranks.rank}|weight||0", torch.arange(10.0) + broken)]
        writer = Writer(final, [pieces], {"step": 4}, ranks, board, time.perf_counter())
        if not ranks.first:
            time.sleep(0.3)
        writer.start()
        troubles.append(writer.wait().trouble)
        wait_for_all()
    return troubles


def test_what_a_rank_wrote_for_a_save_that_failed_is_not_taken_for_the_next_one(pool: Pool, tmp_path: Path) -> None:
    first, second = pool(written_twice, tmp_path)[0]
    assert "Is a directory" in first and second == ""
    (folder,) = committed(tmp_path)
    assert damage(folder) is None
