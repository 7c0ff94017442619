"""How answers lie in rows: which tokens are computed, what each sees before it, and whose label is whose.

In these tests a prompt is of tokens below 100, an answer of tokens from 100; 9 ends each answer.
"""

from __future__ import annotations

import random
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.stores import answered, corpus_of, sequence
from tests.making import job_data
from velocity.batch import IGNORED, Answers, Batch
from velocity.config.training import TrainingJob
from velocity.data.corpus import Corpus
from velocity.data.encode import TokenSequence
from velocity.data.layout import Layout, Pairs, Sequences, SingleAnswers, build_layout
from velocity.data.pack import Indices

X = IGNORED
SHARED, TWICE = Pairs(share_prompt=True), Pairs(share_prompt=False)


def row(*indices: int) -> Indices:
    return np.array(indices, dtype=np.int64)


def answers_of(batch: Batch) -> Answers:
    assert batch.answers is not None
    return batch.answers


def mismatched_of(batch: Batch) -> Batch:
    mismatched = answers_of(batch).mismatched
    assert mismatched is not None
    return mismatched


@pytest.mark.parametrize(
    ("changes", "kind", "name"),
    [
        ({"task": "pretrain"}, Sequences, "sequences"),
        ({"task": "sft"}, Sequences, "sequences"),
        *(({"task": "preference", "preference": {"kind": kind}}, Pairs, "pairs")
          for kind in ("dpo", "orpo", "simpo", "cpo")),
        ({"task": "preference", "preference": {"kind": "kto"}}, SingleAnswers, "single answers of 256"),
    ],
)  # fmt: skip
def test_the_task_has_its_layout(changes: dict[str, Any], kind: type, name: str):
    layout = build_layout(TrainingJob.model_validate({**job_data(Path("x")), **changes}))
    assert type(layout) is kind
    assert layout.name == name  # scores of a reference are kept under it
    assert layout.pack_epoch is (kind is Sequences)


@pytest.mark.parametrize(
    ("attention", "shares"),
    [("auto", True), ("varlen", True), ("sdpa", False), ("eager", False), ("flash_attention_2", False)],
)
def test_a_prompt_is_computed_once_where_the_attention_can_look_back_at_it(attention: str, shares: bool):
    model = {"path": "x", "attention": attention}
    layout = build_layout(TrainingJob.model_validate({**job_data(Path("x")), "task": "preference", "model": model}))
    assert isinstance(layout, Pairs)
    assert layout.share_prompt is shares


def test_a_sequence_by_itself_takes_its_tokens_and_has_no_answers(tmp_path: Path):
    corpus = corpus_of(tmp_path, [sequence([1, 2, 3], [0, 1, 1]), sequence([4, 5], [0, 1])])
    assert Sequences().lengths(corpus).tolist() == [3, 2]
    batch = Sequences().collate(corpus, [row(1, 0)])
    assert batch.input_ids_BS.tolist() == [[4, 5, 1, 2, 3]]
    assert batch.labels_BS.tolist() == [[5, X, 2, 3, X]]
    assert (batch.lengths_B, batch.shared_B, batch.answers) == (((2, 3),), (), None)
    assert batch.records == ("part0.jsonl:2", "part0.jsonl:1")


PAIRS = [
    answered([1, 2, 3], [111, 112, 9], [121, 9]),
    answered([4], [211, 9], [221, 222, 9]),  # a prompt of one token: nothing before its last one to share
    answered([5, 6], [311, -312, 9], [321, 9]),  # 312 is another speaker's
]


@pytest.fixture(name="pairs")
def _pairs(tmp_path: Path) -> Corpus:
    return corpus_of(tmp_path, PAIRS[:1], PAIRS[1:])


def test_a_pair_takes_the_tokens_of_its_prompt_once_or_twice_and_no_end_token(pairs: Corpus):
    # 3 of the prompt and 2 of 3, then the prompt's last one again and 1 of 2: 3 + 2 + 1 + 1 = 7
    # 1 + 1 of 2, then 1 + 2 of 3: 5;  2 + 2 of 3, then 1 + 1 of 2: 6
    assert SHARED.lengths(pairs).tolist() == [7, 5, 6]
    # the whole prompt again: two more, none more, one more
    assert TWICE.lengths(pairs).tolist() == [9, 5, 7]


def test_a_rejected_answer_goes_on_from_the_prompt_that_the_chosen_one_computed(pairs: Corpus):
    batch = SHARED.collate(pairs, [row(0, 2)])
    assert batch.input_ids_BS.tolist() == [[1, 2, 3, 111, 112, 3, 121, 5, 6, 311, 312, 6, 321]]
    assert batch.position_ids_BS.tolist() == [[0, 1, 2, 3, 4, 2, 3, 0, 1, 2, 3, 1, 2]]
    assert batch.labels_BS.tolist() == [[X, X, 111, 112, 9, 121, 9, X, 311, X, 9, 321, 9]]
    assert batch.lengths_B == ((5, 2, 4, 2),)
    assert batch.shared_B == ((0, 2, 0, 1),)


def test_a_prompt_of_one_token_is_computed_for_each_answer(pairs: Corpus):
    batch = SHARED.collate(pairs, [row(1)])
    assert batch.input_ids_BS.tolist() == [[4, 211, 4, 221, 222]]
    assert batch.position_ids_BS.tolist() == [[0, 1, 0, 1, 2]]
    assert batch.labels_BS.tolist() == [[211, 9, 221, 222, 9]]
    assert (batch.lengths_B, batch.shared_B) == (((2, 3),), ())


def test_where_nothing_is_shared_each_answer_has_its_whole_prompt(pairs: Corpus):
    batch = TWICE.collate(pairs, [row(0, 2)])
    assert batch.input_ids_BS.tolist() == [[1, 2, 3, 111, 112, 1, 2, 3, 121, 5, 6, 311, 312, 5, 6, 321]]
    assert batch.position_ids_BS.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2]]
    assert batch.labels_BS.tolist() == [[X, X, 111, 112, 9, X, X, 121, 9, X, 311, X, 9, X, 321, 9]]
    assert (batch.lengths_B, batch.shared_B) == (((5, 4, 4, 3),), ())


@pytest.mark.parametrize("layout", [SHARED, TWICE])
def test_the_chosen_answers_of_all_rows_come_first_and_then_the_rejected_ones(pairs: Corpus, layout: Pairs):
    batch = layout.collate(pairs, [row(2), row(0, 1)])
    answers = answers_of(batch)
    place = {int(label): int(number) for label, number in zip(*labels_and_places(batch), strict=True) if label != 9}
    assert place == {311: 0, 111: 1, 112: 1, 211: 2, 321: 3, 121: 4, 221: 5, 222: 5}
    assert answers.lengths_A.tolist() == [2, 3, 2, 2, 2, 3]  # trained tokens: 312 is none
    assert (answers.count, answers.desirable_A, answers.mismatched) == (6, None, None)
    assert batch.records == ("part1.jsonl:2", "part0.jsonl:1", "part1.jsonl:1")


def labels_and_places(batch: Batch) -> tuple[Any, Any]:
    """Of every label, the label and the number of its answer."""
    trained = batch.labels_BS != IGNORED
    return batch.labels_BS[trained], answers_of(batch).place_BS[trained]


@pytest.mark.parametrize("layout", [SHARED, TWICE])
def test_the_references_scores_land_on_their_answers(pairs: Corpus, layout: Pairs):
    pairs.reference_N2 = np.array([[-1, -2], [-3, -4], [-5, -6]], dtype=np.float32)
    reference_A = answers_of(layout.collate(pairs, [row(2), row(0, 1)])).reference_A
    assert reference_A is not None
    assert reference_A.tolist() == [-5, -1, -3, -6, -2, -4]


def test_without_a_reference_there_are_no_scores(pairs: Corpus):
    assert answers_of(SHARED.collate(pairs, [row(0)])).reference_A is None


@pytest.mark.parametrize("layout", [SHARED, TWICE])
def test_a_rank_without_pairs_has_no_answers(pairs: Corpus, layout: Pairs):
    pairs.reference_N2 = np.zeros((3, 2), dtype=np.float32)
    batch = layout.collate(pairs, [])
    answers = answers_of(batch)
    assert (batch.lengths_B, batch.shared_B, batch.trained, batch.records) == (((1,),), (), 0, ())
    assert answers.reference_A is not None
    assert (answers.count, list(answers.reference_A.shape), answers.place_BS.tolist()) == (0, [0], [[-1]])


Seen = tuple[list[int], list[int], list[int]]  # ids, positions and labels of a prompt with one answer


def as_each_answer_sees_it(batch: Batch) -> dict[int, Seen]:
    """For each answer the tokens that it sees, with their positions and its labels, rebuilt from the rows."""
    place_BS, found = answers_of(batch).place_BS, {}
    shared_B = batch.shared_B or tuple((0,) * len(lengths) for lengths in batch.lengths_B)
    for b, (lengths, shared) in enumerate(zip(batch.lengths_B, shared_B, strict=True)):
        starts = list(accumulate(lengths, initial=0))
        for i, (length, count) in enumerate(zip(lengths, shared, strict=True)):
            before = starts[i - 1] if count else 0
            seen = [*range(before, before + count), *range(starts[i], starts[i] + length)]
            labels = [X] * count + batch.labels_BS[b, starts[i] : starts[i] + length].tolist()
            [number] = set(place_BS[b, starts[i] : starts[i] + length].tolist()) - {-1}
            assert number not in found
            found[number] = (batch.input_ids_BS[b, seen].tolist(), batch.position_ids_BS[b, seen].tolist(), labels)
    return found


def as_a_row_of_its_own(prompt: list[int], answer: list[int]) -> Seen:
    ids = [*prompt, *map(abs, answer[:-1])]
    return ids, list(range(len(ids))), [X] * (len(prompt) - 1) + [token if token >= 0 else X for token in answer]


def random_pairs(count: int, chance: random.Random) -> list[tuple[list[int], list[int], list[int]]]:
    """Prompts of 1 to 6 tokens, answers of 1 to 5, some of whose tokens are another speaker's."""

    def answer() -> list[int]:
        return [chance.choice([1, 1, -1]) * chance.randint(100, 999) for _ in range(chance.randint(0, 4))] + [9]

    prompts = [[number + 1, *chance.choices(range(50, 99), k=chance.randint(0, 5))] for number in range(count)]
    return [(prompt, answer(), answer()) for prompt in prompts]


@pytest.mark.parametrize("layout", [SHARED, TWICE])
def test_however_pairs_lie_each_answer_sees_its_prompt_and_itself(tmp_path: Path, layout: Pairs):
    chance = random.Random(0)
    pairs = random_pairs(40, chance)
    corpus = corpus_of(tmp_path, [answered(*pair) for pair in pairs])
    lengths = layout.lengths(corpus)
    for _ in range(50):
        order = chance.sample(range(40), 10)
        rows = [row(*order[:1]), row(*order[1:4]), row(*order[4:])]
        batch = layout.collate(corpus, rows)
        assert [sum(each) for each in batch.lengths_B] == [int(lengths[each].sum()) for each in rows]
        seen = as_each_answer_sees_it(batch)
        expected = [as_a_row_of_its_own(pairs[index][0], pairs[index][which]) for which in (1, 2) for index in order]
        assert [seen[number] for number in range(20)] == expected


LIMIT = 6
SINGLE = [  # answers and their rivals, as they lie after one another
    answered([1], [111, 9]),
    answered([1], [121, 122, 9], desirable=False),
    answered([2, 3], [211, 212, 213, 9]),
    answered([2, 3], [9], desirable=False),
    answered([4, 5, 6], [311, 312, 9]),
    answered([4, 5, 6], [321, -322, 9], desirable=False),
]


@pytest.fixture(name="single")
def _single(tmp_path: Path) -> Corpus:
    return corpus_of(tmp_path, SINGLE)


def test_a_single_answer_lies_behind_its_prompt_and_beside_it_the_same_prompt_with_anothers(single: Corpus):
    # of 6 answers, the other one lies 3 away
    batch = SingleAnswers(LIMIT).collate(single, [row(4), row(0, 3)])
    assert batch.input_ids_BS.tolist() == [[4, 5, 6, 311, 312], [1, 111, 2, 3, 0]]
    assert batch.labels_BS.tolist() == [[X, X, 311, 312, 9], [111, 9, X, 9, X]]
    assert batch.position_ids_BS.tolist() == [[0, 1, 2, 3, 4], [0, 1, 0, 1, 0]]
    assert (batch.lengths_B, batch.shared_B) == (((5,), (2, 2)), ())
    other = mismatched_of(batch)
    assert other.input_ids_BS.tolist() == [[4, 5, 6, 121, 122], [1, 2, 3, 111, 0]]
    assert other.labels_BS.tolist() == [[X, X, 121, 122, 9], [9, X, 111, 9, X]]
    assert (other.lengths_B, other.shared_B) == (((5,), (1, 3)), ())


def test_single_answers_are_numbered_as_they_lie_and_so_are_the_mismatched_ones(single: Corpus):
    batch = SingleAnswers(LIMIT).collate(single, [row(4), row(0, 3)])
    assert answers_of(batch).place_BS.tolist() == [[-1, -1, 0, 0, 0], [1, 1, -1, 2, -1]]
    assert answers_of(batch).lengths_A.tolist() == [3, 2, 1]
    other = mismatched_of(batch)
    assert answers_of(other).place_BS.tolist() == [[-1, -1, 0, 0, 0], [1, -1, 2, 2, -1]]
    assert answers_of(other).lengths_A.tolist() == [3, 1, 2]
    assert batch.records == other.records == ("part0.jsonl:5", "part0.jsonl:1", "part0.jsonl:4")


def test_single_answers_know_which_of_them_are_desirable_and_mismatched_ones_are_neither(single: Corpus):
    batch = SingleAnswers(LIMIT).collate(single, [row(5, 0), row(1), row(2)])
    desirable_A = answers_of(batch).desirable_A
    assert desirable_A is not None
    assert (desirable_A.tolist(), str(desirable_A.dtype)) == ([False, True, False, True], "torch.bool")
    assert answers_of(mismatched_of(batch)).desirable_A is None
    assert answers_of(mismatched_of(batch)).mismatched is None


def test_the_references_scores_land_on_the_answers_and_on_the_mismatched_ones(single: Corpus):
    single.reference_N2 = -np.arange(12, dtype=np.float32).reshape(6, 2)
    batch = SingleAnswers(LIMIT).collate(single, [row(5, 0), row(2)])
    own, other = answers_of(batch).reference_A, answers_of(mismatched_of(batch)).reference_A
    assert own is not None and other is not None
    assert (own.tolist(), other.tolist()) == ([-10, 0, -4], [-11, -1, -5])


def test_anothers_answer_is_cut_to_what_a_prompt_leaves_of_the_limit(single: Corpus):
    # 5 has 3 tokens, its other answer is that of 2, of 4: the last of them does not fit
    other = mismatched_of(SingleAnswers(LIMIT).collate(single, [row(5)]))
    assert other.input_ids_BS.tolist() == [[4, 5, 6, 211, 212]]
    assert other.labels_BS.tolist() == [[X, X, 211, 212, 213]]
    assert answers_of(other).lengths_A.tolist() == [3]


def test_a_single_answer_takes_the_tokens_of_the_longer_of_both(single: Corpus):
    # own:   1 + 2 - 1, 1 + 3 - 1, 2 + 4 - 1, 2 + 1 - 1, 3 + 3 - 1, 3 + 3 - 1
    # other: 1 + 1 - 1, 1 + 3 - 1, 2 + 3 - 1, 2 + 2 - 1, 3 + 3 - 1, 3 + 3 - 1 (of 4, cut)
    assert SingleAnswers(LIMIT).lengths(single).tolist() == [2, 3, 5, 3, 5, 5]


def test_a_rank_without_single_answers_has_no_mismatched_ones_either(single: Corpus):
    single.reference_N2 = np.zeros((6, 2), dtype=np.float32)
    batch = SingleAnswers(LIMIT).collate(single, [])
    assert answers_of(batch).desirable_A is not None
    for part in (batch, mismatched_of(batch)):
        assert (part.lengths_B, part.trained, answers_of(part).count) == (((1,),), 0, 0)
        reference_A = answers_of(part).reference_A
        assert reference_A is not None and list(reference_A.shape) == [0]


def random_answers(count: int) -> list[TokenSequence]:
    """The two answers of each of `count` pairs after one another; prompt n is [n], its answers begin with 100 + n."""
    chance = random.Random(count)
    return [
        answered([number + 1], [101 + number, *chance.choices(range(500, 600), k=chance.randint(0, 9)), 9])
        for number in range(count)
        for _ in range(2)
    ]


def own_and_other(layout: Layout, corpus: Corpus) -> list[tuple[int, int, int]]:
    """Of each answer of a corpus its prompt's pair, and those that its own and its other answer belong to."""
    batch = layout.collate(corpus, [row(index) for index in range(len(corpus.lengths))])
    prompts = batch.input_ids_BS[:, 0].tolist()
    assert mismatched_of(batch).input_ids_BS[:, 0].tolist() == prompts
    first = [part.labels_BS[:, 0].tolist() for part in (batch, mismatched_of(batch))]
    return [(prompt, own - 100, other - 100) for prompt, own, other in zip(prompts, *first, strict=True)]


@pytest.mark.parametrize("pairs", [2, 3, 4, 5, 6, 7, 20, 33])
def test_no_prompt_is_set_beside_an_answer_of_its_own_pair_and_each_answer_is_set_beside_one(
    tmp_path: Path, pairs: int
):
    found = own_and_other(SingleAnswers(64), corpus_of(tmp_path, random_answers(pairs)))
    assert all(prompt == own != other for prompt, own, other in found)
    assert sorted(other for _, _, other in found) == sorted(own for _, own, _ in found)


@pytest.mark.parametrize("pairs", [2, 5, 20])
def test_that_holds_where_all_desirable_answers_come_before_the_others(tmp_path: Path, pairs: int):
    both = random_answers(pairs)
    found = own_and_other(SingleAnswers(64), corpus_of(tmp_path, [*both[::2], *both[1::2]]))
    assert all(prompt == own != other for prompt, own, other in found)


def test_both_rows_of_single_answers_fit_into_the_tokens_that_they_are_said_to_take(tmp_path: Path):
    chance, limit = random.Random(0), 8
    sizes = [(size, chance.randint(1, limit - size)) for size in chance.choices(range(1, 7), k=40)]
    corpus = corpus_of(tmp_path, [answered(range(1, size + 1), [9] * length) for size, length in sizes])
    batch = SingleAnswers(limit).collate(corpus, [row(index) for index in range(40)])
    own, other = ([sum(each) for each in part.lengths_B] for part in (batch, mismatched_of(batch)))
    assert own == [size + length - 1 for size, length in sizes]
    assert SingleAnswers(limit).lengths(corpus).tolist() == [max(both) for both in zip(own, other, strict=True)]
    assert max(other) == limit - 1, "the last token is not computed"
