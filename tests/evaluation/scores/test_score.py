"""One known answer or several."""

from __future__ import annotations

from velocity.evaluation.scores.score import best, known


def test_the_known_answer_that_fits_best_counts():
    same = best(lambda completion, reference: float(completion == reference))
    assert same("a", ["b", "a"], {}) == 1.0 and same("a", "b", {}) == 0.0


def test_a_text_is_one_known_answer_not_its_letters():
    assert known("ab") == ["ab"] and known(["a", "b"]) == ["a", "b"]
