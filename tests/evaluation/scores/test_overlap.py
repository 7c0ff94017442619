"""ROUGE-L and chrF are those of the libraries; where one is missing, it is said which."""

from __future__ import annotations

import sys
from importlib import import_module

import pytest

from velocity.errors import UserError
from velocity.evaluation.scores.overlap import chrf, rouge_l

PAIRS = [
    ("the attacker reads the file", "an attacker can read the file"),
    ("nothing alike", "SQL injection"),
    ("SQL injection", "SQL injection"),
    ("", "SQL injection"),
]


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence():
    """attacker, the, file of 5 and of 6 words: 2 x 3 / (5 + 6)."""
    assert rouge_l()(*PAIRS[0], {}) == pytest.approx(6 / 11)


@pytest.mark.parametrize(("completion", "reference"), PAIRS)
def test_both_are_the_libraries_own_figures(completion: str, reference: str):
    rouge_scorer = import_module("rouge_score.rouge_scorer")
    sacrebleu = import_module("sacrebleu")
    theirs = rouge_scorer.RougeScorer(["rougeL"]).score(reference, completion)["rougeL"].fmeasure
    assert rouge_l()(completion, reference, {}) == theirs
    assert chrf()(completion, reference, {}) == sacrebleu.sentence_chrf(completion, [reference]).score / 100


@pytest.mark.parametrize("score", [rouge_l, chrf])
def test_of_several_known_answers_the_best_counts(score):
    several = [reference for _, reference in PAIRS]
    assert score()("SQL injection", several, {}) == pytest.approx(1.0)


@pytest.mark.parametrize(("score", "package"), [(rouge_l, "rouge-score"), (chrf, "sacrebleu")], ids=["rouge_l", "chrf"])
def test_a_missing_library_is_named_with_the_extra_that_has_it(score, package: str, monkeypatch: pytest.MonkeyPatch):
    for module in ("rouge_score", "rouge_score.rouge_scorer", "sacrebleu", "sacrebleu.metrics"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"needs {package}\n.*ProfoundVelocity\[evaluation\]"):
        score()
