"""Which rows a step sees: a function of data, seed and step; ranks and micro-batches only share them out."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.making import job_data
from velocity.batch import Batch
from velocity.config.job import Job
from velocity.data.loader import Corpus, Share, TrainLoader, eval_rows, split
from velocity.data.store import Block, SequenceStore, StoreWriter

LENGTH = 32
ALONE = Share()


def make_store(folder: Path, count: int, seed: int) -> SequenceStore:
    """Sequences of 1 to 32 tokens; the first token names the sequence."""
    chance = np.random.default_rng(seed)
    lengths = chance.integers(1, LENGTH + 1, count).astype(np.int32)
    ids = np.concatenate([np.full(n, 1000 * seed + i) for i, n in enumerate(lengths)]).astype(np.int32)
    folder.mkdir()
    writer = StoreWriter(folder)
    lines = np.arange(count, dtype=np.int64) + 1
    writer.append(Block(ids, np.ones(len(ids), dtype=np.uint8), lengths, np.zeros(count, dtype=np.int32), lines))
    writer.close({"files": [f"{folder.name}.jsonl"]})
    return SequenceStore(folder)


@pytest.fixture(name="stores")
def _stores(tmp_path: Path) -> list[SequenceStore]:
    return [make_store(tmp_path / "one", 40, seed=1), make_store(tmp_path / "two", 25, seed=2)]


def make_job(**changes: Any) -> Job:
    data = job_data(Path("x"))
    data["data"].update(sequence_length=LENGTH, packing=changes.pop("packing", True))
    return Job.model_validate({**data, "batch": {"rows": 7}, **changes})


def loader(stores: list[SequenceStore], share: Share = ALONE, weights: Any = None, **changes: Any) -> TrainLoader:
    return TrainLoader(Corpus(stores, weights or [1.0] * len(stores)), make_job(**changes), share)


def names(batch: Batch) -> list[tuple[int, ...]]:
    """For each row, the sequences that it holds; a row that nothing is trained on and that is one token is none."""
    rows = []
    for ids, lengths in zip(batch.input_ids_BS.tolist(), batch.lengths_B, strict=True):
        starts = np.cumsum([0, *lengths[:-1]])
        rows.append(tuple(ids[start] for start in starts))
    return [row for row in rows if row != (0,)]


def test_a_corpus_lays_its_stores_end_to_end(stores: list[SequenceStore]):
    corpus = Corpus(stores, [1, 1])
    assert corpus[0].ids[0] == 1000 and corpus[39].ids[0] == 1039
    assert corpus[40].ids[0] == 2000 and corpus[64].ids[0] == 2024
    assert (corpus.place(39), corpus.place(40)) == ("one.jsonl:40", "two.jsonl:1")
    assert corpus.lengths.tolist() == [len(corpus[i].ids) for i in range(65)]


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("micro", [1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_ranks_together_see_the_rows_that_one_rank_sees(
    stores: list[SequenceStore], world_size: int, micro: int, packing: bool
):
    ranks = [loader(stores, Share(rank, world_size, micro), packing=packing) for rank in range(world_size)]
    for step in range(5):
        [expected] = [names(batch) for batch in loader(stores, Share(micro=7), packing=packing).micro_batches(step)]
        shares = [rank.micro_batches(step) for rank in ranks]
        # 7 rows over the ranks, `micro` at a time: the same number of micro-batches on every rank
        assert {len(share) for share in shares} == {math.ceil(math.ceil(7 / world_size) / micro)}
        assert max(len(batch.lengths_B) for share in shares for batch in share) <= micro
        seen = [row for share in shares for batch in share for row in names(batch)]
        assert sorted(seen) == sorted(expected) and len(seen) == 7


def test_a_step_can_be_asked_for_without_those_before_it(stores: list[SequenceStore]):
    # a resumed run begins here
    in_order, direct = loader(stores), loader(stores)
    before = [[row.tolist() for row in in_order.global_batch(step)] for step in range(20)]
    for step in (19, 0, 7, 12):
        assert [row.tolist() for row in direct.global_batch(step)] == before[step]


def stream(made: TrainLoader, rows: int) -> list[list[int]]:
    """The first rows of the stream, in order."""
    return [made._row(number).tolist() for number in range(rows)]


@pytest.mark.parametrize("packing", [True, False])
def test_an_epoch_sees_every_sequence_once(stores: list[SequenceStore], packing: bool):
    made = loader(stores, packing=packing)
    first = 0
    for epoch in range(3):
        rows = len(made.epoch_rows(epoch))
        seen = [index for row in stream(made, first + rows)[first:] for index in row]
        assert sorted(seen) == list(range(65)), f"epoch {epoch}"
        first += rows


def test_no_row_is_longer_than_the_sequence_length(stores: list[SequenceStore]):
    made = loader(stores)
    assert max(made.corpus.lengths[row].sum() for row in stream(made, 100)) <= LENGTH


def test_epochs_differ_in_order_and_in_what_is_packed_together(stores: list[SequenceStore]):
    made = loader(stores)
    rows = [{tuple(sorted(row.tolist())) for row in (made.epoch_rows(e)[r] for r in range(9))} for e in (0, 1)]
    assert rows[0] != rows[1]


def test_weights_repeat_a_source(stores: list[SequenceStore]):
    made = loader(stores, weights=[1.0, 3.0])
    seen = Counter(index for row in stream(made, len(made.epoch_rows(0))) for index in row)
    assert {index: 3 if index >= 40 else 1 for index in range(65)} == seen


def test_another_seed_is_another_order(stores: list[SequenceStore]):
    assert stream(loader(stores, seed=0), 9) != stream(loader(stores, seed=1), 9)


def test_the_global_batch_begins_with_its_longest_rows(stores: list[SequenceStore]):
    made = loader(stores, packing=False)
    sizes = [int(made.corpus.lengths[row].sum()) for row in made.global_batch(2)]
    assert sizes == sorted(sizes, reverse=True)


def test_steps_of_an_epoch_take_in_its_last_row(stores: list[SequenceStore]):
    # 65 sequences, 7 a step: 9.3 steps are 10; two epochs are 130, 18.6 steps; half an epoch 32.5, 4.6 steps
    made = loader(stores, packing=False)
    assert [made.steps(epochs) for epochs in (1, 2, 0.5, 1.5)] == [10, 19, 5, 14]


def test_a_batch_in_tokens_is_as_many_rows_as_hold_them(stores: list[SequenceStore]):
    assert loader(stores, batch={"tokens": 5 * LENGTH}).rows == 5


def test_every_sequence_of_an_evaluation_set_is_scored_once(stores: list[SequenceStore]):
    corpus = Corpus(stores, [1, 1])
    for capacity in (LENGTH, None):
        rows = eval_rows(corpus, capacity)
        assert sorted(index for row in rows for index in row.tolist()) == list(range(65))
        for world_size in (1, 2, 3):
            batches = [split(corpus, rows, Share(rank, world_size, 4)) for rank in range(world_size)]
            assert len({len(part) for part in batches}) == 1, "the same number on every rank"
            seen = [name for part in batches for batch in part for row in names(batch) for name in row]
            assert sorted(seen) == [*range(1000, 1040), *range(2000, 2025)]


def test_a_rank_without_a_row_keeps_step_with_an_empty_batch(stores: list[SequenceStore]):
    corpus = Corpus(stores, [1, 1])
    parts = [split(corpus, eval_rows(corpus, None)[:2], Share(rank, 3, 1)) for rank in range(3)]
    assert [len(part) for part in parts] == [1, 1, 1]
    assert [names(part[0]) for part in parts][2] == []
    assert parts[2][0].trained == 0


def test_a_batch_names_the_records_it_holds(stores: list[SequenceStore]):
    [batch] = split(Corpus(stores, [1, 1]), [np.array([0, 41])], Share())
    assert batch.records == ("one.jsonl:1", "two.jsonl:2")
