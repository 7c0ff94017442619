"""Rows of pieces to tensors: labels are the next tokens of the same sequence, and each knows its answer."""

from __future__ import annotations

import numpy as np
import torch

from tests.data.stores import sequence
from velocity.batch import IGNORED, Answers, Batch
from velocity.data.collate import Piece, collate, whole
from velocity.data.encode import TokenSequence

X = IGNORED
ONE = sequence([11, 12, 13], [0, 1, 1])
TWO = sequence([21, 22], [0, 1])
THREE = sequence([31, 32, 33, 34], [0, 0, 1, 0])


def collated(*rows: list[TokenSequence]) -> Batch:
    return collate([[whole(each) for each in row] for row in rows])


def test_labels_are_the_next_tokens_that_are_trained_on_within_each_sequence():
    batch = collated([ONE, TWO], [THREE])
    assert batch.input_ids_BS.tolist() == [[11, 12, 13, 21, 22], [31, 32, 33, 34, 0]]
    assert batch.labels_BS.tolist() == [[12, 13, X, 22, X], [X, 33, X, X, X]]
    assert batch.position_ids_BS.tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 0]]
    assert batch.lengths_B == ((3, 2), (4,))


def test_the_first_token_of_a_sequence_is_never_a_label_whatever_its_mask_says():
    assert collated([ONE, sequence([21, 22], [1, 1])]).labels_BS.tolist() == [[12, 13, X, 22, X]]


def test_trained_tokens_are_as_many_as_the_masks_have_behind_the_first():
    batch = collated([ONE, TWO], [THREE])
    assert (batch.tokens, batch.trained) == (9, 4)


def test_a_label_that_is_token_zero_stays_one_and_padding_with_zero_is_none():
    batch = collated([sequence([5, 0], [0, 1])], [ONE])
    assert batch.labels_BS.tolist() == [[0, X, X], [12, 13, X]]


def test_a_rank_without_rows_gets_one_token_that_is_not_trained_on():
    batch = collate([])
    assert (batch.input_ids_BS.shape, batch.lengths_B, batch.trained) == ((1, 1), ((1,),), 0)


def test_the_places_of_the_records_go_along():
    assert collate([[whole(ONE)], [whole(TWO)]], ["a.jsonl:1", "a.jsonl:2"]).records == ("a.jsonl:1", "a.jsonl:2")


def test_the_tensors_are_of_64_bit_integers():
    batch = collated([ONE])
    assert {str(t.dtype) for t in (batch.input_ids_BS, batch.labels_BS, batch.position_ids_BS)} == {"torch.int64"}


def test_sequences_share_nothing_and_answer_nothing():
    batch = collated([ONE, TWO], [THREE])
    assert (batch.shared_B, batch.answers) == ((), None)


def piece(ids: list[int], labels: list[int], start: int = 0, shared: int = 0, answer: int = -1) -> Piece:
    return Piece(np.array(ids, dtype=np.int32), np.array(labels, dtype=np.int32), start, shared, answer)


HEAD = piece([1, 2, 3, 4], [X, X, 4, 5], answer=0)
TAIL = piece([3, 6, 7], [6, X, 8], start=2, shared=2, answer=2)
ALONE = piece([9], [10], answer=1)


def answers_of(batch: Batch) -> Answers:
    assert batch.answers is not None
    return batch.answers


def test_a_piece_that_shares_goes_on_from_its_own_start_and_says_what_it_shares():
    batch = collate([[ALONE], [HEAD, TAIL]], answers={})
    assert batch.input_ids_BS.tolist() == [[9, 0, 0, 0, 0, 0, 0], [1, 2, 3, 4, 3, 6, 7]]
    assert batch.position_ids_BS.tolist() == [[0, 0, 0, 0, 0, 0, 0], [0, 1, 2, 3, 2, 3, 4]]
    assert batch.lengths_B == ((1,), (4, 3))
    assert batch.shared_B == ((0,), (0, 2))
    assert batch.tokens == 1 + 4 + 3


def test_each_label_knows_its_answer_and_each_answer_its_labels():
    answers = answers_of(collate([[ALONE], [HEAD, TAIL]], answers={}))
    # where there is no label, as at 6 in the middle of an answer, or padding, there is no answer
    assert answers.place_BS.tolist() == [[1, -1, -1, -1, -1, -1, -1], [-1, -1, 0, 0, 2, -1, 2]]
    assert answers.lengths_A.tolist() == [2, 1, 2]
    assert answers.count == 3


def test_an_answer_without_a_label_counts_as_one_of_length_zero():
    answers = answers_of(collate([[ALONE, piece([2], [X], answer=2), piece([3], [4], answer=0)]], answers={}))
    assert answers.lengths_A.tolist() == [1, 1, 0]


def test_what_else_is_known_of_the_answers_goes_along():
    batch, reference_A = collate([[ALONE]]), torch.tensor([-1.0])
    answers = answers_of(collate([[ALONE]], answers={"reference_A": reference_A, "mismatched": batch}))
    assert (answers.reference_A is reference_A, answers.mismatched is batch) == (True, True)
    assert answers.desirable_A is None


def test_a_rank_without_rows_has_no_answers_but_a_place_for_its_one_token():
    answers = answers_of(collate([], answers={}))
    assert (answers.place_BS.tolist(), answers.lengths_A.tolist(), answers.count) == ([[-1]], [], 0)
    assert {str(tensor.dtype) for tensor in (answers.place_BS, answers.lengths_A)} == {"torch.int64"}
