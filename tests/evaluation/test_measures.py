"""Measures of rows, from numbers that are counted by hand."""

from __future__ import annotations

import math

import pytest

from velocity.evaluation.measures import measures_of, picked
from velocity.intervals import mean_interval


def test_the_likeliest_option_is_another_one_by_token_and_by_byte():
    # summed −4 beats −6 and −9; a token: −4, −2, −3; a byte: −0.4, −0.6, −0.3
    line = {"logprobs": [-4.0, -6.0, -9.0], "tokens": [1, 3, 3], "bytes": [10, 10, 30]}
    assert picked(line) == {"sum": 0, "token": 1, "byte": 2}


def test_accuracy_counts_the_rows_whose_pick_is_the_answer():
    rows = [
        {"picked": {"sum": 0, "token": 1, "byte": 1}, "answer": 1},
        {"picked": {"sum": 1, "token": 1, "byte": 0}, "answer": 1},
    ]
    found = measures_of("choices", rows)
    assert {name: one.top for name, one in found.items()} == {
        "accuracy": [0.0, 1.0], "accuracy_per_token": [1.0, 1.0], "accuracy_per_byte": [1.0, 0.0],
    }  # fmt: skip


def test_a_perplexity_weighs_tokens_and_bits_weigh_bytes():
    rows = [{"logprob": -2.0, "tokens": 1, "bytes": 4}, {"logprob": -4.0, "tokens": 5, "bytes": 8}]
    found = measures_of("perplexity", rows)
    likely, bits = found["perplexity"], found["bits_per_byte"]
    assert likely.bottom is not None and bits.bottom is not None
    assert likely.transform(sum(likely.top) / sum(likely.bottom)) == pytest.approx(math.e)  # 6 nats of 6 tokens
    assert bits.transform(sum(bits.top) / sum(bits.bottom)) == pytest.approx(0.5 / math.log(2))
    assert {one.better for one in found.values()} == {"lower"}


def test_each_score_of_an_answer_is_a_measure():
    found = measures_of("answers", [{"scores": {"f1": 0.5, "mine": 1}}, {"scores": {"f1": 0.0, "mine": 0}}])
    assert {name: mean_interval(one.top, 0).value for name, one in found.items()} == {"f1": 0.25, "mine": 0.5}
