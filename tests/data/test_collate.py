"""Rows of sequences to tensors: labels are the next tokens of the same sequence, and nothing else."""

from __future__ import annotations

import numpy as np

from velocity.batch import IGNORED
from velocity.data.collate import collate
from velocity.data.encode import TokenSequence

X = IGNORED


def sequence(ids: list[int], trained: list[int]) -> TokenSequence:
    return TokenSequence(np.array(ids, dtype=np.int32), np.array(trained, dtype=np.uint8))


ONE = sequence([11, 12, 13], [0, 1, 1])
TWO = sequence([21, 22], [0, 1])
THREE = sequence([31, 32, 33, 34], [0, 0, 1, 0])


def test_labels_are_the_next_tokens_that_are_trained_on_within_each_sequence():
    batch = collate([[ONE, TWO], [THREE]])
    assert batch.input_ids_BS.tolist() == [[11, 12, 13, 21, 22], [31, 32, 33, 34, 0]]
    assert batch.labels_BS.tolist() == [[12, 13, X, 22, X], [X, 33, X, X, X]]
    assert batch.position_ids_BS.tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 0]]
    assert batch.lengths_B == ((3, 2), (4,))


def test_the_first_token_of_a_sequence_is_never_a_label_whatever_its_mask_says():
    batch = collate([[ONE, sequence([21, 22], [1, 1])]])
    assert batch.labels_BS.tolist() == [[12, 13, X, 22, X]]


def test_trained_tokens_are_as_many_as_the_masks_have_behind_the_first():
    batch = collate([[ONE, TWO], [THREE]])
    assert (batch.tokens, batch.trained) == (9, 4)


def test_a_label_that_is_token_zero_stays_one_and_padding_with_zero_is_none():
    batch = collate([[sequence([5, 0], [0, 1])], [ONE]])
    assert batch.labels_BS.tolist() == [[0, X, X], [12, 13, X]]


def test_a_rank_without_rows_gets_one_token_that_is_not_trained_on():
    batch = collate([])
    assert (batch.input_ids_BS.shape, batch.lengths_B, batch.trained) == ((1, 1), ((1,),), 0)


def test_the_places_of_the_records_go_along():
    assert collate([[ONE], [TWO]], ["a.jsonl:1", "a.jsonl:2"]).records == ("a.jsonl:1", "a.jsonl:2")


def test_the_tensors_are_of_64_bit_integers():
    batch = collate([[ONE]])
    assert {str(t.dtype) for t in (batch.input_ids_BS, batch.labels_BS, batch.position_ids_BS)} == {"torch.int64"}
