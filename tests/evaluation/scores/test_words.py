"""Exact match and F1 of words, as SQuAD's own script has them."""

from __future__ import annotations

from importlib import import_module

import pytest

from velocity.evaluation.scores.words import exact_match, f1, plain


def test_case_articles_punctuation_and_spaces_do_not_count():
    assert plain("  The Buffer-overflow, an old  one! ") == "bufferoverflow old one"
    assert exact_match("the CWE-79.", "CWE-79") == 1.0
    assert exact_match("CWE-79", "CWE-78") == 0.0


def test_an_article_inside_a_word_stays():
    assert plain("another theory") == "another theory"


@pytest.mark.parametrize(
    ("completion", "reference", "score"),
    [
        ("cross site scripting", "cross site scripting", 1.0),
        ("it is cross site scripting", "cross site scripting", 0.75),  # 3 of 5 words, all 3 known: 2 x 3 / (5 + 3)
        ("cross cross", "cross site", 0.5),  # a word counts as often as both have it: 2 x 1 / (2 + 2)
        ("injection", "scripting", 0.0),
        ("", "scripting", 0.0),
        ("the", "an", 1.0),  # nothing is left of both
    ],
)
def test_f1_is_twice_the_shared_words_over_all_words(completion: str, reference: str, score: float):
    assert f1(completion, reference) == score


def test_they_are_those_of_squads_own_script():
    """lm-eval has a copy of it. It gives two answers without a word 0; version 2 of the script, and we, give them 1."""
    script = import_module("lm_eval.tasks.qasper.metrics")
    texts = ["The answer is 42.", "an answer", "42", "Yes, it's so", "forty-two the the"]
    for one in texts:
        assert plain(one) == script.normalize_answer(one)
        for other in texts:
            assert f1(one, other) == pytest.approx(script.f1_abstractive([one], [other]))
