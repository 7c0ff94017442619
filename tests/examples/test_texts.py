"""How XML, Markdown and transcripts become clean prose."""

from __future__ import annotations

from xml.etree import ElementTree

from entities import collapse, lead, listed
from speeches import cut, paragraphs
from techniques import clean
from xmltext import code, flow, passages


def test_citations_links_and_tags_are_stripped_and_their_words_kept() -> None:
    text = "Use [PowerShell](https://a.b/T1059/001) <code>-enc</code> (Citation: A (b) 2020) (Citation: C) ."
    text += "(Citation: D)Then &lt;x&gt;."
    assert clean(text) == ["Use PowerShell -enc. Then <x>."]


def test_list_items_stay_below_the_paragraph_that_they_follow() -> None:
    assert clean("Do:\n\n- a\n- b\n\n \n\nMore.\n\nMore.") == ["Do:\n- a\n- b", "More."]
    node = ElementTree.fromstring("<d><p>Do:</p><ul><li>a</li><li><p>b</p></li></ul><p>More [REF-1].</p></d>")
    assert passages(node) == ["Do:\n- a\n- b", "More."]
    assert flow(node) == "Do: a; b. More."


def test_a_listing_keeps_its_lines_and_margins() -> None:
    node = ElementTree.fromstring(
        '<c><div>if (a) {<div style="margin-left:1em;">b();<br/>c( i  );</div>}</div>\n  <div>d;</div></c>'
    )
    assert code(node) == "if (a) {\n    b();\n    c( i );\n}\nd;"


def test_lead_is_whole_sentences_and_at_least_one() -> None:
    text = "Some tools, e.g. Nmap, scan. They are quick. Others wait."
    assert lead(text, words=1) == "Some tools, e.g. Nmap, scan."
    assert lead(text, words=8) == "Some tools, e.g. Nmap, scan. They are quick."
    assert lead(text, words=99) == text


def test_collapse_mends_punctuation_but_no_names() -> None:
    assert collapse("a  \n b .  In the .NET world , yes") == "a b. In the .NET world, yes"


def test_listed_joins_as_prose() -> None:
    assert [listed([]), listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]


def test_a_transcript_loses_the_room_and_keeps_what_an_editor_put_in() -> None:
    speech = (
        "The President. Thank you. [Laughter] We [the] people.\n\nAudience members. Four more!\n\n"
        "[The General presented the Medal.]\n\n[Applause]\n\nGood night."
    )
    assert paragraphs(speech) == ["Thank you. We [the] people.", "Good night."]


def test_records_of_a_speech_have_300_to_500_words_and_lose_none_but_the_end() -> None:
    texts = [f"W{number} " + "word " * 148 + "end." for number in range(7)]  # 150 words each: two make a record
    runs = list(cut(texts))
    assert [len(run.split()) for run in runs] == [300, 300, 300]
    assert "\n\n".join(runs) == "\n\n".join(texts[:6])
    assert all(300 <= len(run.split()) <= 500 for run in cut(["One two three. " * 400]))
