"""Which rows a step sees: a function of data, seed and step; ranks and micro-batches only share them out."""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.stores import answered, sequence, write_store
from tests.making import job_data
from velocity.batch import Batch
from velocity.config.training import TrainingJob
from velocity.data.corpus import Corpus
from velocity.data.encode import TokenSequence
from velocity.data.layout import Sequences, build_layout
from velocity.data.loader import Share, TrainLoader, eval_rows, split
from velocity.data.pack import best_fit
from velocity.data.store import SequenceStore

LENGTH = 32
ALONE = Share()


def make_store(folder: Path, count: int, seed: int) -> SequenceStore:
    """Sequences of 1 to 32 tokens; the first token names the sequence."""
    lengths = np.random.default_rng(seed).integers(1, LENGTH + 1, count).tolist()
    return write_store(folder, [sequence([1000 * seed + i] * n, [1] * n) for i, n in enumerate(lengths)])


@pytest.fixture(name="stores")
def _stores(tmp_path: Path) -> list[SequenceStore]:
    return [make_store(tmp_path / "one", 40, seed=1), make_store(tmp_path / "two", 25, seed=2)]


def make_job(**changes: Any) -> TrainingJob:
    data = job_data(Path("x"))
    data["data"].update(sequence_length=LENGTH, packing=changes.pop("packing", True))
    return TrainingJob.model_validate({**data, "batch": {"rows": 7}, **changes})


def loader(stores: list[SequenceStore], share: Share = ALONE, weights: Any = None, **changes: Any) -> TrainLoader:
    return TrainLoader(Corpus(stores, weights or [1.0] * len(stores)), make_job(**changes), share)


def names(batch: Batch) -> list[tuple[int, ...]]:
    """For each row, the sequences that it holds; a row that nothing is trained on and that is one token is none."""
    rows = []
    for ids, lengths in zip(batch.input_ids_BS.tolist(), batch.lengths_B, strict=True):
        starts = np.cumsum([0, *lengths[:-1]])
        rows.append(tuple(ids[start] for start in starts))
    return [row for row in rows if row != (0,)]


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


@pytest.mark.parametrize("packing", [True, False])
def test_rows_of_sequences_stay_as_the_epoch_made_them(stores: list[SequenceStore], packing: bool):
    # a global batch counts rows: packed anew, those at an epoch's end could become fewer
    made = loader(stores, Share(micro=7), packing=packing)
    for step in range(20):
        [batch] = made.micro_batches(step)
        rows = made.global_batch(step)
        assert names(batch) == [tuple(int(made.corpus[index].ids[0]) for index in row) for row in rows]


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


def test_what_a_run_has_seen_is_what_its_steps_were_made_of(stores: list[SequenceStore]):
    made = loader(stores)
    seen = made.seen(2)
    assert sorted(set(np.concatenate([*made.global_batch(0), *made.global_batch(1)]))) == seen.tolist()
    assert made.seen(1000).tolist() == list(range(len(made.lengths)))
    assert made.seen(0).tolist() == []


def test_steps_of_an_epoch_take_in_its_last_row(stores: list[SequenceStore]):
    # 65 sequences, 7 a step: 9.3 steps are 10; two epochs are 130, 18.6 steps; half an epoch 32.5, 4.6 steps
    made = loader(stores, packing=False)
    assert [made.steps(epochs) for epochs in (1, 2, 0.5, 1.5)] == [10, 19, 5, 14]


def test_a_batch_in_tokens_is_as_many_rows_as_hold_them(stores: list[SequenceStore]):
    assert loader(stores, batch={"tokens": 5 * LENGTH}).rows == 5


def test_every_sequence_of_an_evaluation_set_is_scored_once(stores: list[SequenceStore]):
    corpus = Corpus(stores, [1, 1])
    for capacity in (LENGTH, None):
        rows = eval_rows(corpus, Sequences(), capacity)
        assert sorted(index for row in rows for index in row.tolist()) == list(range(65))
        for world_size in (1, 2, 3):
            batches = [split(corpus, rows, Share(rank, world_size, 4), Sequences()) for rank in range(world_size)]
            assert len({len(part) for part in batches}) == 1, "the same number on every rank"
            seen = [name for part in batches for batch in part for row in names(batch) for name in row]
            assert sorted(seen) == [*range(1000, 1040), *range(2000, 2025)]


def test_a_rank_without_a_row_keeps_step_with_an_empty_batch(stores: list[SequenceStore]):
    corpus = Corpus(stores, [1, 1])
    rows = eval_rows(corpus, Sequences(), None)[:2]
    parts = [split(corpus, rows, Share(rank, 3, 1), Sequences()) for rank in range(3)]
    assert [len(part) for part in parts] == [1, 1, 1]
    assert [names(part[0]) for part in parts][2] == []
    assert parts[2][0].trained == 0


def test_a_batch_names_the_records_it_holds(stores: list[SequenceStore]):
    [batch] = split(Corpus(stores, [1, 1]), [np.array([0, 41])], Share(), Sequences())
    assert batch.records == ("one.jsonl:1", "two.jsonl:2")


def make_answers(count: int, seed: int, pieces: int) -> list[TokenSequence]:
    """Prompts with one answer or with two, most of them short, and some that together take all of the 32 tokens."""
    chance, made = random.Random(seed), []
    for _ in range(count):
        prompt = chance.randint(1, 8)
        answers = [[5] * chance.choice([*range(1, 9), LENGTH - prompt]) for _ in range(pieces)]
        made.append(answered([7] * prompt, *answers))
    return made


KINDS: dict[str, dict[str, Any]] = {
    "pairs": {"preference": {"kind": "dpo"}},
    "pairs with the prompt twice": {"model": {"path": "x", "attention": "sdpa"}},
    "single answers": {"preference": {"kind": "kto"}},
}
SETS = [(kind, packing) for kind in KINDS for packing in (True, False)]
ROW = {"pairs": 2 * LENGTH, "pairs with the prompt twice": 2 * LENGTH, "single answers": LENGTH}  # tokens at most
PIECES = {"pairs": 2, "pairs with the prompt twice": 2, "single answers": 1}


def answer_stores(folder: Path, kind: str) -> list[SequenceStore]:
    return [write_store(folder / f"{n}", make_answers(n, n, PIECES[kind])) for n in (30, 17)]


def answer_loader(stores: list[SequenceStore], kind: str, share: Share = ALONE, **changes: Any) -> TrainLoader:
    return loader(stores, share, task="preference", **KINDS[kind], **changes)


def rows_of(batch: Batch) -> list[int]:
    """The tokens of each row of a batch and of its mismatched one; none of a rank without rows."""
    if not batch.records:
        return []
    others = batch.answers.mismatched if batch.answers else None
    return [sum(lengths) for part in (batch, others) if part is not None for lengths in part.lengths_B]


EVERY = [*(f"30.jsonl:{i}" for i in range(1, 31)), *(f"17.jsonl:{i}" for i in range(1, 18))]


@pytest.mark.parametrize(("kind", "packing"), SETS)
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("micro", [1, 2, 7])
def test_a_global_batch_is_the_same_records_whatever_the_ranks_the_micro_size_and_the_packing(
    tmp_path: Path, kind: str, packing: bool, world_size: int, micro: int
):
    stores = answer_stores(tmp_path, kind)
    reference = answer_loader(stores, kind, packing=False)
    ranks = [answer_loader(stores, kind, Share(rank, world_size, micro), packing=packing) for rank in range(world_size)]
    for step in range(9):  # 47 records, 7 a step: 7 steps are an epoch
        expected = [reference.corpus.place(int(index)) for row in reference.global_batch(step) for index in row]
        assert len(expected) == 7
        shares = [rank.micro_batches(step) for rank in ranks]
        assert len({len(share) for share in shares}) == 1, "the same number on every rank"
        batches = [batch for share in shares for batch in share]
        assert sorted(name for batch in batches for name in batch.records) == sorted(expected)
        assert [batch.answers and batch.answers.count for batch in batches] == [
            PIECES[kind] * len(b.records) for b in batches
        ]
        assert max(tokens for batch in batches for tokens in rows_of(batch)) <= ROW[kind]
        assert max(len(batch.lengths_B) for batch in batches) <= micro


@pytest.mark.parametrize("kind", KINDS)
def test_a_global_batch_of_answers_lies_in_as_few_rows_as_hold_it_and_the_longest_row_comes_first(
    tmp_path: Path, kind: str
):
    made = answer_loader(answer_stores(tmp_path, kind), kind, Share(micro=99))
    for step in range(7):
        [batch] = made.micro_batches(step)
        tokens = [int(made.lengths[EVERY.index(name)]) for name in batch.records]
        assert len(batch.lengths_B) == len(best_fit(np.array(tokens), ROW[kind])) < 7
        in_order = iter(tokens)
        sizes = [sum(next(in_order) for _ in lengths[:: PIECES[kind]]) for lengths in batch.lengths_B]
        assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("kind", KINDS)
def test_without_packing_each_pair_has_a_row(tmp_path: Path, kind: str):
    [batch] = answer_loader(answer_stores(tmp_path, kind), kind, Share(micro=99), packing=False).micro_batches(0)
    assert [len(lengths) for lengths in batch.lengths_B] == [PIECES[kind]] * 7


@pytest.mark.parametrize(("kind", "packing"), SETS)
def test_an_epoch_sees_every_pair_once(tmp_path: Path, kind: str, packing: bool):
    made = answer_loader(answer_stores(tmp_path, kind), kind, packing=packing)
    assert made.steps(1) == 7  # of 7 pairs: 47 / 7 = 6.7
    seen = [index for row in stream(made, 3 * 47) for index in row]
    for epoch in range(3):
        assert sorted(seen[47 * epoch : 47 * (epoch + 1)]) == list(range(47))
    assert seen[:47] != seen[47 : 2 * 47]


@pytest.mark.parametrize(("kind", "packing"), SETS)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_pair_of_an_evaluation_set_is_scored_once(tmp_path: Path, kind: str, packing: bool, world_size: int):
    corpus = Corpus(answer_stores(tmp_path, kind), [1, 1])
    layout = build_layout(make_job(task="preference", **KINDS[kind]))
    rows = eval_rows(corpus, layout, ROW[kind] if packing else None)
    assert (len(rows) < 47) is packing
    parts = [split(corpus, rows, Share(rank, world_size, 2), layout) for rank in range(world_size)]
    assert len({len(part) for part in parts}) == 1, "the same number on every rank"
    batches = [batch for part in parts for batch in part]
    assert sorted(name for batch in batches for name in batch.records) == sorted(EVERY)
    assert max(tokens for batch in batches for tokens in rows_of(batch)) <= ROW[kind]


def test_micro_batches_know_their_rows_and_a_part_of_them_is_made_as_the_whole_is(stores: list[SequenceStore]):
    corpus = Corpus(stores, [1, 1])
    batches = split(corpus, [np.array([i]) for i in range(5)], Share(micro=2), Sequences())
    assert [[row.tolist() for row in part] for part in batches.parts] == [[[0], [1]], [[2], [3]], [[4]]]
    assert [batch.records for batch in batches[1:]] == [("one.jsonl:3", "one.jsonl:4"), ("one.jsonl:5",)]
