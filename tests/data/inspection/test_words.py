"""Words and their runs as hashes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from velocity.data.inspection import words as module
from velocity.data.inspection.words import hashes, runs, tokens, whole, words


def runs_of(text: str, length: int) -> list[int]:
    found: list[int] = runs(hashes(words(text)), length).tolist()
    return found


def test_case_and_punctuation_make_no_word():
    assert words("The product's input -- is IT checked?") == ["the", "product", "s", "input", "is", "it", "checked"]


def test_signs_are_tokens_of_their_own():
    assert tokens("a+b !=  c") == ["a", "+", "b", "!", "=", "c"]


def test_in_a_script_without_spaces_each_letter_is_a_word():
    assert words("日本語 text ไทย") == ["日", "本", "語", "text", "ไ", "ท", "ย"]


def test_there_are_as_many_runs_as_places_where_one_can_begin():
    assert len(runs_of("a b c d e f", 4)) == 3  # abcd bcde cdef
    assert len(runs_of("a b c", 4)) == 0
    assert len(runs_of("a b a b a b", 2)) == 2, "each once: ab ba"


def test_the_same_words_elsewhere_are_the_same_run_and_another_order_is_another():
    assert set(runs_of("x y a b c", 3)) & set(runs_of("a b c z", 3)) == set(runs_of("a b c", 3))
    assert runs_of("a b c", 3) != runs_of("b a c", 3)
    assert not set(runs_of("a a a a", 2)) & set(runs_of("a a a a", 3)), "runs of another length are others"


def test_many_runs_have_as_many_hashes():
    text = " ".join(map(str, range(50_000)))
    assert len(runs_of(text, 5)) == 49_996


def test_a_text_is_told_by_all_of_its_words():
    one, other = hashes(["a", "b"]), hashes(["b", "a"])
    assert whole(one) == whole(hashes(["a", "b"])) != whole(other)


def test_a_hash_is_the_same_in_every_process():
    code = "from velocity.data.inspection.words import hashes, runs; print(runs(hashes('a b c'.split()), 2).tolist())"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}
    )
    assert answer.stdout.strip() == str(runs_of("a b c", 2))


def test_words_beyond_those_that_are_remembered_hash_as_ever(monkeypatch):
    first = hashes(["a", "b"])
    monkeypatch.setattr(module, "_MOST", 1)
    assert np.array_equal(hashes(["c", "a", "d", "b"])[[1, 3]], first)
