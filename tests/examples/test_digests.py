"""Each text again in short, in two ways."""

from __future__ import annotations

from digests import LONGEST, digests

TEXT = """# T1: Data Hiding

Data is hidden. It is hidden well.

More of it follows here.

## Detection

Signs show in files. Look at them.

## Mitigations

"""


def said(text: str) -> list[str]:
    return [digest["text"] for digest in digests([{"text": text}])]


def test_a_text_is_told_in_order_and_part_by_part_each_with_the_name_of_what_it_is_about():
    in_order, by_part = said(TEXT)
    opening = "Data is hidden. It is hidden well. More of it follows here."
    detection = "Detection: Signs show in files. Look at them."
    assert in_order == f"# T1: Data Hiding\n{opening}\n{detection}", "a section without a word is left out"
    named = [f"{opening} That is Data Hiding (T1).", f"Data Hiding (T1). {detection}"]
    assert sorted(by_part.split("\n\n")) == sorted(named)


def test_a_title_without_a_code_is_the_name_as_it_stands():
    assert said("# Pump: how it works\n\nIt pumps.")[1] == "It pumps. That is Pump: how it works."


def test_of_a_long_section_the_first_sentences_are_told():
    section = " ".join(f"Sentence {number} has five words." for number in range(20))
    in_order, _ = said(f"# T1\n\n## Detection\n\n{section}")
    # four of them are 20 words; the fifth would make 25
    assert in_order.endswith("Sentence 3 has five words.")


def test_a_sentence_that_goes_on_and_on_is_left_out_where_there_are_others():
    endless = "word " * LONGEST + "end."
    assert said(f"# T1\n\nShort.\n\n## List\n\n{endless}")[0] == "# T1\nShort."
    assert said(f"# T1\n\n## List\n\n{endless}")[0] == f"# T1\nList: {endless}"


def test_a_text_of_one_line_has_no_title_and_is_told_by_its_first_sentences():
    text = " ".join(f"Sentence {number} has five words." for number in range(20))
    first, second = said(text)
    assert first == second == " ".join(f"Sentence {number} has five words." for number in range(10))


def test_another_run_says_the_same():
    assert said(TEXT) == said(TEXT)
