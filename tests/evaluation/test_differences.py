"""What two models differ by, row by row."""

from __future__ import annotations

import math
from typing import Any

import pytest

from velocity.evaluation.differences import differences


def texts(nats_a_token: float, tokens: int = 10, *, ids: range = range(40)) -> list[dict[str, Any]]:
    return [{"id": f"row-{i}", "logprob": -nats_a_token * tokens - i % 3, "tokens": tokens, "bytes": 50} for i in ids]


def picks(right: int, *, rows: int = 100) -> list[dict[str, Any]]:
    """Rows of which the first `right` are picked right, by all three ways."""
    return [
        {"id": f"row-{i}", "answer": 1, "picked": dict.fromkeys(("sum", "token", "byte"), int(i < right))}
        for i in range(rows)
    ]


def test_a_lower_perplexity_is_better_by_a_share_and_its_bits_by_a_number():
    """exp(2 - 3) - 1 = -63.2 %; 1 nat a token is 10 nats in 50 bytes: 0.2 / ln 2 = 0.289 bits a byte."""
    found = differences("unseen", "perplexity", texts(2.0), texts(3.0))
    assert found["perplexity"]["difference"] == pytest.approx(math.exp(-1) - 1)
    assert found["perplexity"]["words"].startswith("better: lower by 63.2 %")
    assert found["bits_per_byte"]["difference"] == pytest.approx(-0.2 / math.log(2))


def test_perplexities_of_two_tokenizers_are_not_compared_their_bits_are():
    assert set(differences("unseen", "perplexity", texts(2.0, 10), texts(2.0, 12))) == {"bits_per_byte"}


def test_rows_are_matched_by_id_not_by_place():
    ours = texts(2.0)
    assert differences("unseen", "perplexity", ours, ours[::-1])["perplexity"]["difference"] == 0.0


def test_only_rows_that_both_have_are_compared():
    found = differences("unseen", "perplexity", texts(2.0, ids=range(40)), texts(3.0, ids=range(30, 60)))
    assert found["perplexity"]["rows"] == 10
    assert differences("unseen", "perplexity", texts(2.0, ids=range(3)), texts(3.0, ids=range(3, 6))) == {}


def test_pairs_show_what_two_separate_intervals_would_not():
    """60 and 50 of the same 100 rows: the ten that differ are all for us. Apart, each is within 10 points of itself."""
    found = differences("seen", "choices", picks(60), picks(50))
    assert found["accuracy"]["difference"] == pytest.approx(0.1)
    assert found["accuracy"]["words"].startswith("better by 10.0 points (95 %: 3.")
    assert set(found) == {"accuracy", "accuracy_per_token", "accuracy_per_byte"}


def test_one_row_of_a_hundred_is_no_difference():
    assert differences("seen", "choices", picks(51), picks(50))["accuracy"]["words"].startswith("no difference")


def test_answers_are_compared_in_the_scores_that_both_have():
    ours = [{"id": str(i), "scores": {"f1": 0.9 - i % 2 / 10, "pattern": 1.0}} for i in range(30)]
    theirs = [{"id": str(i), "scores": {"f1": 0.4 + i % 3 / 10}} for i in range(30)]
    found = differences("said", "answers", ours, theirs)
    assert set(found) == {"f1"} and found["f1"]["words"].startswith("better by 35.0 points")
