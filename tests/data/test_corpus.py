"""Several stores as one: an index finds its sequence, its parts, its place and its reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.data.stores import answered, corpus_of, sequence
from velocity.data.corpus import Corpus

FIRST = [answered([1, 2], [3], [4, 5]), answered([6], [7, 8], [9])]
SECOND = [sequence([10, 11, 12], [0, 1, 1])]
THIRD = [answered([20], [21], desirable=False), answered([22, 23], [24, 25]), answered([26, 27, 28], [29])]


@pytest.fixture(name="corpus")
def _corpus(tmp_path: Path) -> Corpus:
    return corpus_of(tmp_path, FIRST, SECOND, THIRD)


def test_a_corpus_lays_its_stores_end_to_end(corpus: Corpus):
    assert corpus.sizes == [2, 1, 3]
    assert corpus.lengths.tolist() == [5, 4, 3, 2, 4, 4]
    for index, expected in enumerate([*FIRST, *SECOND, *THIRD]):
        for number in (index, np.int64(index)):  # rows of indices are arrays
            assert corpus[number].ids.tolist() == expected.ids.tolist()
            assert (corpus[number].parts, corpus[number].desirable) == (expected.parts, expected.desirable)


def test_the_parts_are_those_of_all_sequences_in_order(corpus: Corpus):
    assert corpus.parts_N3.tolist() == [[2, 1, 2], [1, 2, 1], [0, 0, 0], [1, 1, 0], [2, 2, 0], [3, 1, 0]]


def test_a_place_is_that_of_the_record_in_its_own_file(corpus: Corpus):
    places = [corpus.place(index) for index in range(6)]
    expected = ["part0.jsonl:1", "part0.jsonl:2", "part1.jsonl:1", "part2.jsonl:1", "part2.jsonl:2", "part2.jsonl:3"]
    assert places == expected


def test_a_corpus_has_no_reference_until_it_is_given_one(corpus: Corpus):
    assert corpus.reference_N2 is None
