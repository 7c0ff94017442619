"""Which rows belong together and which are done: shards follow from the prompts alone, and a torn one is not there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from velocity.inference.ledger import Ledger, order_of, shard_rows

LENGTHS = [int(length) for length in np.random.default_rng(0).integers(1, 200, 50)]
LINES = [{"row": row, "completion": "ja, 日本 🙂\n" * row, "finish_reason": "stop"} for row in (4, 7)]


def test_rows_stand_longest_first_and_equal_ones_as_in_the_input():
    assert order_of([3, 9, 3, 12, 9]).tolist() == [3, 1, 4, 0, 2]
    assert order_of(np.array([5, 7], dtype=np.int32)).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("rows", "size"),
    # 256 shards, but no fewer than 16 rows in one, and no more than 512
    [(1, 16), (4096, 16), (4097, 17), (10_000, 40), (131_072, 512), (10_000_000, 512)],
)
def test_a_shard_has_so_many_rows(rows: int, size: int):
    assert shard_rows(rows) == size


def test_shards_hold_every_row_once_and_follow_from_the_lengths_alone(tmp_path: Path):
    one, other = Ledger(tmp_path, LENGTHS), Ledger(tmp_path / "other", np.array(LENGTHS, dtype=np.int32))
    assert [shard.tolist() for shard in one.shards] == [shard.tolist() for shard in other.shards]
    assert sorted(row for shard in one.shards for row in shard) == list(range(50))
    assert [len(shard) for shard in one.shards] == [16, 16, 16, 2]
    lengths = [LENGTHS[row] for shard in one.shards for row in shard]
    assert lengths == sorted(lengths, reverse=True)


def test_a_written_shard_is_done_and_reads_back_without_its_marker(tmp_path: Path):
    ledger = Ledger(tmp_path / "shards", LENGTHS)
    assert ledger.unfinished() == [0, 1, 2, 3]
    ledger.write(2, LINES)
    assert ledger.unfinished() == [0, 1, 3]
    assert ledger.state(2) == {"shard": 2, "lines": 2, "failed": 0}
    assert list(ledger.lines(2)) == LINES
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["00000002.jsonl"]


def test_a_shard_with_a_failed_row_is_kept_and_done_again(tmp_path: Path):
    ledger = Ledger(tmp_path, LENGTHS)
    ledger.write(0, [*LINES, {"row": 9, "completion": None, "error": "out of memory"}])
    assert ledger.state(0) == {"shard": 0, "lines": 3, "failed": 1}
    assert ledger.unfinished() == [0, 1, 2, 3]
    ledger.write(0, LINES)
    assert ledger.unfinished() == [1, 2, 3]


@pytest.mark.parametrize("long", [False, True])
def test_a_shard_that_is_torn_anywhere_is_not_done(tmp_path: Path, long: bool):
    ledger = Ledger(tmp_path, LENGTHS)
    # longer than what is read of the end of a file, with characters of three bytes at every place
    ledger.write(1, [{**line, "more": "日" * 3000} for line in LINES] if long else LINES)
    whole = ledger.path(1).read_bytes()
    assert ledger.state(1) is not None
    for end in [*range(len(whole) - 300, len(whole)), 0, 1, 40]:
        ledger.path(1).write_bytes(whole[:end])
        assert ledger.state(1) is None, end
    assert ledger.unfinished() == [0, 1, 2, 3]


@pytest.mark.parametrize("last", ['{"row": 4}', "[1]", "17", "null", '{"shard": 0, "lines": 2, "failed": 0}', "", "{}"])
def test_a_file_without_a_marker_of_its_own_is_not_done(tmp_path: Path, last: str):
    ledger = Ledger(tmp_path, LENGTHS)
    ledger.path(1).write_text(json.dumps(LINES[0]) + "\n" + last + "\n")
    assert ledger.state(1) is None


def test_a_write_that_is_killed_leaves_no_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ledger = Ledger(tmp_path, LENGTHS)

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("velocity.files.sync", killed)  # the file is written, and not yet in its place
    with pytest.raises(KeyboardInterrupt):
        ledger.write(0, LINES)
    assert 0 in Ledger(tmp_path, LENGTHS).unfinished()
    assert not ledger.path(0).exists()


def test_files_that_others_left_are_no_shards(tmp_path: Path):
    ledger = Ledger(tmp_path, LENGTHS)
    (tmp_path / ".00000000.jsonl.123.tmp").write_text("{}")
    ledger.path(3).mkdir()
    assert ledger.unfinished() == [0, 1, 2, 3]
