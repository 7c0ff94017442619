"""Sequences on disk: they come back as they were; a store is whole or it is not there, whoever builds it and dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.stores import answered, sequence, write_store
from tests.making import flip
from velocity.data.encode import TokenSequence
from velocity.data.store import Block, SequenceStore, StoreWriter, open_cache, open_or_build
from velocity.errors import UserError

SEQUENCES = [sequence([100 * n + i for i in range(n)], [i % 2 for i in range(n)]) for n in (3, 1, 4, 1, 5, 9)]


def block(first: int, last: int, file: int = 0) -> Block:
    """The sequences from `first` to before `last`, each of its own line."""
    return Block.of(SEQUENCES[first:last], file, range(first + 1, last + 1))


def write(folder: Path) -> None:
    """Two record batches, of two files."""
    writer = StoreWriter(folder)
    writer.append(block(0, 2))
    writer.append(block(2, 6, file=1))
    writer.close({"files": ["a.jsonl", "b.jsonl"], "sequences": 6})


@pytest.fixture(name="store")
def _store(tmp_path: Path) -> SequenceStore:
    return open_or_build(tmp_path / "store", write, tmp_path / "notes")


def test_every_sequence_comes_back_across_record_batches(store: SequenceStore):
    assert len(store) == 6
    assert store.lengths.tolist() == [3, 1, 4, 1, 5, 9]
    for index in (5, 0, 2, 1, 3, 4, 5):  # in any order
        assert store[index].ids.tolist() == SEQUENCES[index].ids.tolist()
        assert store[index].trained.tolist() == SEQUENCES[index].trained.tolist()


def test_the_types_are_those_that_were_written(store: SequenceStore):
    types = [str(array.dtype) for array in (store[0].ids, store[0].trained, store.lengths)]
    assert types == ["int32", "uint8", "int32"]


def test_each_sequence_knows_its_file_and_line(store: SequenceStore):
    places = [store.place(index) for index in range(6)]
    assert places == ["a.jsonl:1", "a.jsonl:2", "b.jsonl:3", "b.jsonl:4", "b.jsonl:5", "b.jsonl:6"]


def test_blocks_are_what_was_appended(store: SequenceStore):
    for read, written in zip(store.blocks(), [block(0, 2), block(2, 6, file=1)], strict=True):
        for name in ("ids", "trained", "lengths", "files", "lines", "parts_N3", "desirable"):
            assert getattr(read, name).tolist() == getattr(written, name).tolist(), name


PAIRS = [
    answered([1, 2, 3], [4, 5], [6, 7, 8]),
    answered([1], [2], desirable=False),
    answered([1, 2], [3, -4, 5], desirable=True),
    sequence([7, 8], [0, 1]),
    answered([9], [1, 2], [3], desirable=False),
]


def write_pairs(folder: Path) -> None:
    writer = StoreWriter(folder)
    writer.append(Block.of(PAIRS[:2], 0, [1, 2]))
    writer.append(Block.of(PAIRS[2:], 0, [3, 4, 5]))
    writer.close({"files": ["a.jsonl"]})


def test_the_parts_of_a_sequence_and_whether_it_is_desirable_come_back(tmp_path: Path):
    store = open_or_build(tmp_path / "store", write_pairs, tmp_path / "notes")
    for index in (4, 0, 3, 1, 2):
        assert store[index].parts == PAIRS[index].parts, index
        assert store[index].desirable is PAIRS[index].desirable, index
        assert store[index].ids.tolist() == PAIRS[index].ids.tolist()
        assert store[index].trained.tolist() == PAIRS[index].trained.tolist()
    assert store.parts_N3.tolist() == [[3, 2, 3], [1, 1, 0], [2, 3, 0], [0, 0, 0], [1, 2, 1]]
    assert [block.desirable.tolist() for block in store.blocks()] == [[1, 0], [1, 1, 0]]


def test_a_block_of_nothing_is_one(tmp_path: Path):
    empty = Block.of([], 0, [])
    shapes = [empty.ids.shape, empty.trained.shape, empty.lengths.shape, empty.parts_N3.shape, empty.desirable.shape]
    assert shapes == [(0,), (0,), (0,), (0, 3), (0,)]
    assert [str(array.dtype) for array in (empty.ids, empty.trained, empty.parts_N3)] == ["int32", "uint8", "int32"]


def content(folder: Path, *sequences: TokenSequence) -> str:
    return str(write_store(folder, sequences).stats["content"])


def test_what_the_sequences_are_has_a_hash_that_their_place_and_time_do_not_change(tmp_path: Path):
    first, second = content(tmp_path / "one", *PAIRS), content(tmp_path / "two", *PAIRS)
    writer = StoreWriter(tmp_path)
    writer.append(Block.of(PAIRS, 3, [5, 5, 6, 7, 9]))
    writer.close({"files": ["another.jsonl"], "records": 99, "content": "an older one"})
    assert first == second == SequenceStore(tmp_path).stats["content"]
    assert len(bytes.fromhex(first)) == 16


def test_another_token_mask_part_label_or_order_is_another_hash(tmp_path: Path):
    first, second = answered([1, 2], [3, 4], [5, 6]), answered([1, 2], [3, 4, 5, 6])
    kinds = {
        "as it is": [first, second],
        "a token": [answered([1, 7], [3, 4], [5, 6]), second],
        "a token of the other": [first, answered([1, 2], [3, 4, 5, 7])],
        "a mask": [answered([1, 2], [3, -4], [5, 6]), second],
        "where the prompt ends": [answered([1], [-2, 3, 4], [5, 6]), second],
        "where the chosen answer ends": [answered([1, 2], [3], [4, 5, 6]), second],
        "a label": [first, answered([1, 2], [3, 4, 5, 6], desirable=False)],
        "no parts": [sequence([1, 2, 3, 4, 5, 6], [0, 0, 1, 1, 1, 1]), second],
        "the order": [second, first],
        "one more": [first, second, second],
        "one less": [first],
    }
    hashes = {what: content(tmp_path / str(i), *sequences) for i, (what, sequences) in enumerate(kinds.items())}
    assert len(set(hashes.values())) == len(kinds), hashes


def test_where_a_sequence_ends_is_a_part_of_the_hash(tmp_path: Path):
    # laid end to end, the tokens of both are the same
    one = [sequence([1, 2, 3], [0, 0, 0]), sequence([4], [0])]
    other = [sequence([1], [0]), sequence([2, 3, 4], [0, 0, 0])]
    assert content(tmp_path / "one", *one) != content(tmp_path / "other", *other)


def test_opening_reads_no_sequence(store: SequenceStore):
    assert isinstance(store.lengths, np.memmap)
    assert store[5].ids.flags.writeable is False, "a view of the mapped file"
    assert not store[5].ids.flags.owndata


def test_a_store_that_is_there_is_not_built_again(tmp_path: Path, store: SequenceStore):
    again = open_or_build(store.folder, lambda folder: pytest.fail("built again"), tmp_path / "notes")
    assert again[5].ids.tolist() == store[5].ids.tolist()


@pytest.mark.parametrize("name", ["sequences.arrow", "lengths.npy", "stats.json", "seal.json"])
@pytest.mark.parametrize("how", ["a bit", "torn", "gone"])
def test_a_store_that_was_damaged_is_said_and_built_again(
    tmp_path: Path, store: SequenceStore, name: str, how: str, capsys: pytest.CaptureFixture[str]
):
    file = store.folder / name
    if how == "a bit":
        flip(file, file.stat().st_size // 2)
    elif how == "torn":
        os.truncate(file, file.stat().st_size // 2)
    else:
        file.unlink()
    again = open_or_build(store.folder, write, tmp_path / "notes")
    assert [again[index].ids.tolist() for index in range(6)] == [each.ids.tolist() for each in SEQUENCES]
    why = f"{name} {'is missing' if how == 'gone' else 'has changed'}"
    assert f"what was tokenised into {store.folder} is damaged: {why}; it is made again" in capsys.readouterr().err
    open_or_build(store.folder, lambda folder: pytest.fail("built once more"), tmp_path / "notes")


def left_over(folder: Path) -> list[str]:
    """What lies there besides stores and locks."""
    return [path.name for path in folder.iterdir() if path.is_dir() and path.name not in ("store", "notes")]


def test_a_build_that_fails_leaves_nothing_and_the_next_one_succeeds(tmp_path: Path):
    def fail(folder: Path) -> None:
        StoreWriter(folder).append(block(0, 2))
        raise ValueError("a bad record")

    with pytest.raises(ValueError, match="a bad record"):
        open_or_build(tmp_path / "store", fail, tmp_path / "notes")
    assert not (tmp_path / "store").exists() and not left_over(tmp_path)
    assert len(open_or_build(tmp_path / "store", write, tmp_path / "notes")) == 6


def count_and_write(folder: Path) -> None:
    """Builds slowly, and leaves a mark of it beside the store."""
    (folder.parent / f"built-by-{os.getpid()}").touch()
    writer = StoreWriter(folder)
    writer.append(block(0, 2))
    time.sleep(0.3)
    writer.append(block(2, 6, file=1))
    writer.close({"files": ["a.jsonl", "b.jsonl"], "sequences": 6})


def build_and_report(folder: Path, barrier: Any, results: Any) -> None:
    barrier.wait()
    store = open_or_build(folder, count_and_write, folder.parent / "notes")
    results.put([store[index].ids.tolist() for index in range(len(store))])


def test_of_two_processes_one_builds_and_neither_gets_a_torn_store(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    builders = [context.Process(target=build_and_report, args=(tmp_path / "store", barrier, results)) for _ in "ab"]
    for builder in builders:
        builder.start()
    found = [results.get(timeout=30) for _ in builders]
    for builder in builders:
        builder.join()
    assert found == [[each.ids.tolist() for each in SEQUENCES]] * 2
    assert len(list(tmp_path.glob("built-by-*"))) == 1


def build_half(folder: Path) -> None:
    writer = StoreWriter(folder)
    writer.append(block(0, 2))
    (folder.parent / "half").touch()
    time.sleep(60)


def test_a_builder_that_is_killed_half_way_leaves_nothing_that_is_taken_for_whole(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    builder = context.Process(target=open_or_build, args=(tmp_path / "store", build_half, tmp_path / "notes"))
    builder.start()
    while not (tmp_path / "half").exists():
        time.sleep(0.01)
    assert builder.pid is not None
    os.kill(builder.pid, signal.SIGKILL)
    builder.join()
    assert not (tmp_path / "store").exists()
    assert left_over(tmp_path), "the killed one could not clean up"
    assert len(open_or_build(tmp_path / "store", write, tmp_path / "notes")) == 6
    assert not left_over(tmp_path), "the next one does"


def test_a_cache_is_closed_to_others_and_refused_where_they_may_write_into_it(tmp_path: Path):
    cache = open_cache(str(tmp_path / "cache"))
    assert not cache.stat().st_mode & 0o007
    (cache / "sequences").mkdir()
    assert open_cache(str(cache)) == cache
    cache.chmod(0o777)
    with pytest.raises(UserError, match="the cache is not to be trusted: anybody may write into it"):
        open_cache(str(cache))
