"""Rows that say the same are found, for any way of saying it that is as similar as asked for; others are not."""

from __future__ import annotations

import numpy as np
import pytest

from velocity.data.inspection.duplicates import Copies, Fingerprint, Signer, candidates, shingles
from velocity.data.inspection.passages import Passage

WORDS = [f"w{number}" for number in range(100_000)]


def text(name: str) -> Passage:
    return Passage(name, (), name)


def copies_among(passages: list[Passage], similarity: float = 0.8) -> dict[int, tuple[int, float, bool]]:
    signer = Signer(similarity)
    copies = Copies(candidates(np.stack([signer(one.text) for one in passages])), similarity)
    found = (copies.add(row, Fingerprint.of(passages[row])) for row in sorted(copies.wanted))
    return {one.row: (one.first, round(one.share, 4), one.exact) for one in found if one is not None}


def words_of(start: int, count: int) -> list[str]:
    return WORDS[start : start + count]


def jaccard(one: str, other: str) -> float:
    first, second = ({tuple(each.split()[i : i + 5]) for i in range(len(each.split()) - 4)} for each in (one, other))
    return len(first & second) / len(first | second)


def test_the_same_text_is_found_whatever_its_spaces():
    rows = [text("a b c d"), text("x y z"), text("a  b\nc d "), text("a b c d e")]
    assert copies_among(rows) == {2: (0, 1.0, True)}


def test_the_first_of_many_is_kept_and_all_others_point_at_it():
    row = " ".join(words_of(0, 30))
    assert copies_among([text("other")] + [text(row)] * 50) == dict.fromkeys(range(2, 51), (1, 1.0, True))


def test_a_text_with_a_word_changed_is_found_with_its_share():
    one = words_of(0, 100)
    other = [*one[:50], "changed", *one[51:]]
    # of 96 runs each 5 hold the word: 91 are common, 101 there are
    assert copies_among([text(" ".join(one)), text(" ".join(other))]) == {1: (0, round(91 / 101, 4), False)}


@pytest.mark.parametrize(("changes", "found"), [(1, True), (2, True), (3, False)])
def test_what_is_less_similar_than_asked_for_is_no_duplicate(changes: int, found: bool):
    one = words_of(0, 100)
    other = [f"changed{i}" if i in (20, 50, 80)[:changes] else word for i, word in enumerate(one)]
    share = (96 - 5 * changes) / (96 + 5 * changes)  # 0.90, 0.81, 0.73
    assert share == pytest.approx(jaccard(" ".join(one), " ".join(other)))
    assert bool(copies_among([text(" ".join(one)), text(" ".join(other))])) == found == (share >= 0.8)


@pytest.mark.parametrize("similarity", [0.5, 0.7, 0.8, 0.9, 0.95])
def test_of_pairs_just_as_similar_as_asked_for_nearly_all_are_found(similarity: float):
    """Two texts of n runs, of which the last k differ: (n - k) / (n + k) is their similarity."""
    pairs, size = 300, 400
    differ = int(size * (1 - similarity) / (1 + similarity))
    rows = []
    for pair in range(pairs):
        words = [f"{pair}a{i}" for i in range(size + 4)]
        changed = [f"{pair}b{i}" for i in range(differ)]
        rows += [text(" ".join(words)), text(" ".join([*words[: size + 4 - differ], *changed]))]
    share = (size - differ) / (size + differ)
    assert share == pytest.approx(jaccard(rows[0].text, rows[1].text))
    assert similarity <= share < similarity + 0.01
    found = copies_among(rows, similarity)
    assert all(row == first + 1 for row, (first, _, _) in found.items()), "none but the pairs"
    # 98 % of them are candidates by design; five standard deviations of 300 draws are 4 points
    assert len(found) >= 0.94 * pairs


def test_a_thousand_different_rows_are_no_duplicates():
    rng = np.random.default_rng(0)
    rows = [text(" ".join(np.array(WORDS)[rng.integers(0, 200, 60)])) for _ in range(1000)]
    assert copies_among(rows) == {}


def test_questions_about_one_long_document_are_none():
    document = " ".join(words_of(0, 500))
    asked = {"who": "the first one of them all did", "when": "on a day of the next year"}
    rows = [Passage(f"{document} {question}\n{answer}", (answer,), "") for question, answer in asked.items()]
    assert jaccard(rows[0].text, rows[1].text) > 0.95
    assert copies_among(rows) == {}
    assert copies_among([rows[0], rows[0]]) == {1: (0, 1.0, True)}


def test_one_answer_to_other_questions_is_none():
    answer = " ".join(words_of(0, 10))
    rows = [Passage(f"{' '.join(words_of(start, 40))}\n{answer}", (answer,), "") for start in (100, 200, 300)]
    assert copies_among(rows) == {}


def test_the_same_answer_liked_and_not_is_none():
    rows = [Passage("why\nso", ("so",), "", label) for label in ("True", "False", "True")]
    assert copies_among(rows) == {2: (0, 1.0, True)}


def test_a_pair_with_another_rival_or_with_its_answers_exchanged_is_none():
    prompt, answers = " ".join(words_of(0, 500)), (" ".join(words_of(600, 10)), " ".join(words_of(700, 10)), "no")
    pairs = ((0, 1), (0, 2), (1, 0), (0, 1))
    rows = [Passage(f"{prompt} {answers[a]} {answers[b]}", (answers[a], answers[b]), "") for a, b in pairs]
    assert copies_among(rows) == {3: (0, 1.0, True)}


def test_in_code_a_sign_makes_the_difference():
    one, other = (f"def f(a, b):\n    return a {sign} b" for sign in "+-")
    assert copies_among([text(one), text(other)]) == {}


def test_a_copy_of_a_copy_points_at_the_first_or_stands_for_itself():
    first = words_of(0, 100)
    second = [*first[:50], "x", *first[51:]]  # 91 of 101 with the first
    third = [*second[:20], "y", *second[21:]]  # 86 of 106 = 0.81 with the first: within reach of it
    fourth = [*third[:80], "z", *third[81:]]  # 81 of 111 = 0.73 with the first, which is the only row kept
    rows = [text(" ".join(one)) for one in (first, second, third, fourth)]
    found = copies_among(rows)
    assert {row: first for row, (first, _, _) in found.items()} == {1: 0, 2: 0}


def test_a_short_text_is_one_run():
    assert len(shingles("a b")) == 1 == len(shingles("a b c d e"))
    assert copies_among([text("Yes."), text("yes ."), text("No.")]) == {1: (0, 1.0, False)}


def test_a_long_text_is_signed_as_its_pieces_would_be_together(monkeypatch):
    signer, long = Signer(0.8), " ".join(words_of(0, 3000))
    whole = signer(long)
    monkeypatch.setattr("velocity.data.inspection.duplicates.AT_ONCE", 100)
    assert np.array_equal(signer(long), whole)


def test_a_signature_is_cut_into_as_few_bands_as_find_what_is_asked_for():
    signer = Signer(0.8)
    assert (signer.rows, signer.bands) == (7, 18)  # 1 - (1 - 0.8 ** 7) ** 18 = 0.985; with 8 rows, 16 bands: 0.947
    assert (Signer(1.0).rows, Signer(1.0).bands) == (128, 1)


def test_no_row_is_compared_with_more_than_a_few_of_a_large_group():
    bands = np.zeros((1000, 1), dtype=np.uint64)
    partners = candidates(bands)
    assert max(map(len, partners.values())) == 16
    assert partners[999] == [*range(8), *range(991, 999)]


def test_no_rows_have_no_candidates():
    assert candidates(np.zeros((0, 1), dtype=np.uint64)) == {}
