"""Texts cut into passages: never longer than asked, whole sentences where they fit, each under its title."""

from __future__ import annotations

import pytest

from velocity.data.records import Chat, Feedback, Preference, Text
from velocity.evaluation.passages import cut, text_of, with_passages


def words(letter: str, count: int) -> str:
    """So many words, of which the first is written large and the last ends a sentence."""
    return f"{letter.upper()} {' '.join([letter] * (count - 1))}."


def test_a_short_text_is_one_passage():
    assert cut("Nothing to cut.", 20) == ["Nothing to cut."]


def test_paragraphs_share_a_passage_while_they_fit():
    text = "\n\n".join([words("a", 4), words("b", 4), words("c", 4)])
    assert cut(text, 10) == [f"{words('a', 4)}\n{words('b', 4)}", words("c", 4)]  # 4 + 4 fit into 10, 4 more do not


def test_a_long_paragraph_is_cut_between_sentences():
    text = f"{words('a', 6)} {words('b', 6)} {words('c', 6)}"
    assert cut(text, 12) == [f"{words('a', 6)} {words('b', 6)}", words("c", 6)]


def test_a_sentence_that_is_too_long_is_cut_between_words():
    assert cut(words("a", 25), 10) == ["A a a a a a a a a a", "a a a a a a a a a a", "a a a a a."]


@pytest.mark.parametrize("first", ["# CWE-89: Injection", "Injection"])
def test_every_passage_begins_with_the_title(first: str):
    found = cut(f"{first}\n\n{words('a', 9)}\n\n{words('b', 9)}", 12)
    assert found == [f"{first.lstrip('# ')}\n{words('a', 9)}", f"{first.lstrip('# ')}\n{words('b', 9)}"]


def test_a_first_sentence_is_no_title():
    assert cut("It ends here.\n\nAnd goes on.", 8) == ["It ends here.\nAnd goes on."]


def test_a_heading_stays_with_what_it_stands_above():
    assert cut(f"{words('a', 8)}\n\n## Use\n\n{words('b', 8)}", 10) == [words("a", 8), f"Use: {words('b', 8)}"]


@pytest.mark.parametrize("limit", [8, 13, 40])
def test_no_passage_is_longer_than_asked_and_no_word_is_lost(limit: int):
    text = "\n\n".join(words(letter, count) for letter, count in zip("abcdef", (3, 30, 9, 1, 17, 60), strict=True))
    found = cut(text, limit)
    assert max(len(passage.split()) for passage in found) <= limit
    assert " ".join(found).split() == text.split()


def test_a_title_alone_is_a_passage_and_nothing_is_none():
    assert cut("# CWE-89", 8) == ["CWE-89"]
    assert cut("", 8) == []


def test_of_a_record_every_turn_is_said_and_of_two_answers_the_better_one():
    ask, good, bad = (({"role": role, "content": text},) for role, text in (("user", "q"), ("a", "yes"), ("a", "no")))
    assert text_of(Text("plain")) == "plain"
    assert text_of(Chat((*ask, *good))) == "q\n\nyes"
    assert text_of(Preference(ask, good, bad)) == "q\n\nyes"
    assert text_of(Feedback(ask, good, True)) == "q\n\nyes"


def test_passages_stand_numbered_before_the_question():
    prompt = "[1] One.\n\n[2] Two.\n\nAnswer from the passages above where they help.\nWhat?"
    assert with_passages("What?", ["One.", "Two."]) == prompt
    assert with_passages("What?", []) == "What?"
