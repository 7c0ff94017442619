"""What two answers have in common, and what only one of them says."""

from __future__ import annotations

from velocity.report.difference import difference, pieces


def test_words_that_differ_stand_in_their_places():
    found = [(one.kind, one.text) for one in difference("It is a stack overflow.", "It is a heap overflow!")]
    assert found == [
        ("same", "It is a "), ("del", "stack"), ("ins", "heap"), ("same", " overflow"), ("del", "."), ("ins", "!"),
    ]  # fmt: skip


def test_without_deletions_it_is_the_second_text_and_without_insertions_the_first():
    first, second = "one two  three\nfour", "two three four five"
    found = difference(first, second)
    assert "".join(one.text for one in found if one.kind != "del") == second
    assert "".join(one.text for one in found if one.kind != "ins") == first


def test_equal_texts_are_one_piece_and_no_text_is_none():
    assert difference("a b", "a b") == pieces("a b")
    assert difference("", "") == [] == pieces("")


def test_very_long_answers_are_not_compared_word_by_word():
    found = difference("a " * 2000, "b " * 2000)
    assert [one.kind for one in found] == ["del", "ins"]
