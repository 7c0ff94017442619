"""Text of evaluation rows in training rows: whole, in part, in many rows; and what is nobody's own."""

from __future__ import annotations

import pytest

from velocity.data.inspection.overlap import EvalIndex, Overlaps
from velocity.data.inspection.words import hashes, words

WORDS = [f"w{number}" for number in range(10_000)]
Found = dict[int, tuple[int, float, int]]


def said(start: int, count: int) -> str:
    return " ".join(WORDS[start : start + count])


def overlaps(evaluation: list[str], train: list[str], least: float = 0.0, length: int = 13) -> tuple[Found, Found]:
    """Of training rows and of evaluation rows: the other row, the share, with how many."""
    index = EvalIndex((hashes(words(row)) for row in evaluation), length)
    collected = Overlaps(index)
    for number, row in enumerate(train):
        if (hits := index.hits(hashes(words(row)))) is not None:
            collected.add(number, hits)
    of_train, of_eval = ({one.row: (one.other, round(one.share, 3), one.rows) for one in some}
                         for some in collected.found(least))  # fmt: skip
    return of_train, of_eval


def test_a_training_row_that_holds_an_evaluation_row_is_found_whatever_its_case_and_punctuation():
    row = said(0, 40)
    train = [said(1000, 60), f"before {row.upper().replace(' ', ', ')}. after", said(2000, 60)]
    assert overlaps([said(5000, 40), row], train) == ({1: (1, 1.0, 1)}, {1: (1, 1.0, 1)})


@pytest.mark.parametrize(("common", "found"), [(12, False), (13, True)])
def test_thirteen_words_make_an_overlap_and_twelve_none(common: int, found: bool):
    train, evaluated = overlaps([said(0, 112)], [f"{said(500, 50)} {said(20, common)} {said(600, 50)}"])
    assert bool(train) == bool(evaluated) == found
    if found:
        assert train == {0: (0, 0.01, 1)}  # one of the 100 runs that 112 words have


def test_of_each_evaluation_row_it_is_said_how_much_stands_anywhere_in_training():
    # 112 words have 100 runs: words 0 to 32 are 20 of them, 40 to 72 another 20; both rows hold words 28 to 40, a run
    train = [said(0, 32) + " x " + said(28, 13), "y " + said(40, 32) + " z " + said(28, 13)]
    of_train, of_eval = overlaps([said(0, 112)], train)
    assert of_train == {0: (0, 0.21, 1), 1: (0, 0.21, 1)}
    assert of_eval == {0: (0, 0.41, 2)}


def test_what_stands_in_ten_different_rows_counts_and_in_eleven_is_boilerplate():
    evaluation = [f"{said(0, 100)} {said(300, 20)}"]
    holders = [f"{said(1000 + 100 * i, 50)} {said(300, 20)}" for i in range(11)]
    assert len(overlaps(evaluation, holders[:10])[0]) == 10
    assert overlaps(evaluation, holders) == ({}, {})


def test_copies_of_one_row_are_no_boilerplate():
    of_train, of_eval = overlaps([said(0, 100)], [said(50, 20) + " end"] * 30)
    assert len(of_train) == 30
    assert of_eval[0][2] == 30


def test_half_of_an_evaluation_row_is_an_overlap_however_many_rows_hold_it():
    of_train, of_eval = overlaps([said(0, 40)], [f"{said(1000 + 100 * i, 50)} {said(0, 40)}" for i in range(30)])
    assert len(of_train) == 30 and {share for _, share, _ in of_train.values()} == {1.0}
    assert of_eval == {0: (0, 1.0, 30)}


def test_what_many_evaluation_rows_share_is_none_of_theirs():
    evaluation = [f"{said(0, 20)} {said(1000 + 100 * i, 60)}" for i in range(11)]
    assert overlaps(evaluation, [said(0, 20) + " and more"]) == ({}, {})
    assert overlaps(evaluation[:10], [said(0, 20) + " and more"])[0] != {}


def test_a_short_evaluation_row_is_found_where_all_of_it_stands():
    of_train, _ = overlaps(
        ["Which port is it by default?"], ["which port is it by then", "x which port is it by default y"]
    )
    assert of_train == {1: (0, 1.0, 1)}


def test_a_row_of_four_words_says_nothing_of_its_own():
    assert overlaps(["yes it is so"], ["yes it is so"]) == ({}, {})


def test_a_short_row_that_many_rows_hold_is_boilerplate():
    train = [f"{said(100 * i, 20)} all rights reserved to us" for i in range(11)]
    assert overlaps(["all rights reserved to us"], train) == ({}, {})


def test_equal_evaluation_rows_are_all_found():
    assert overlaps([said(0, 40), said(100, 40), said(0, 40)], [said(0, 40)])[1] == {0: (0, 1.0, 1), 2: (0, 1.0, 1)}


def test_a_quotation_below_the_least_share_is_none_and_parts_in_many_rows_add_up():
    evaluation = [said(0, 112)]  # 100 runs
    quotation = [said(0, 16) + " x"]  # 4 of them
    assert overlaps(evaluation, quotation, least=0.05) == ({}, {})
    parts = [said(start, 16) + f" x{start}" for start in (0, 40)]
    of_train, of_eval = overlaps(evaluation, parts, least=0.05)
    assert of_eval == {0: (0, 0.08, 2)}
    assert set(of_train) == {0, 1}


def test_a_row_names_the_evaluation_row_of_which_it_holds_most():
    train = [f"{said(0, 20)} x {said(200, 40)}"]
    assert overlaps([said(0, 40), said(200, 40)], train)[0] == {0: (1, 1.0, 2)}


def test_other_lengths_of_runs_can_be_asked_for():
    assert overlaps([said(0, 40)], [said(10, 8) + " end"], length=8)[0] == {0: (0, round(1 / 33, 3), 1)}


def test_without_evaluation_rows_nothing_is_found():
    assert overlaps([], [said(0, 40)]) == ({}, {})
