"""Each text again in short, in two ways."""

from __future__ import annotations

import pytest

from digests import LONGEST, digests

TEXT = """# T1: Data Hiding

Data is hidden. It is hidden well.

More of it follows here.

## Detection

Signs show in files. Look at them.

## Mitigations

"""


def said(text: str, *without: str) -> list[str]:
    return [digest["text"] for digest in digests([{"text": text}], without=without)]


def test_a_text_is_told_in_order_and_part_by_part_each_with_the_name_of_what_it_is_about():
    in_order, by_part = said(TEXT)
    opening = ["Data is hidden. It is hidden well.", "More of it follows here."]
    detection = "Detection: Signs show in files. Look at them."
    told = "\n".join([*opening, detection])
    assert in_order == f"# T1: Data Hiding\n{told}", "a section without a word is left out"
    named = [*(f"{part} That is Data Hiding (T1)." for part in opening), f"Data Hiding (T1). {detection}"]
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
    assert first == second == " ".join(f"Sentence {number} has five words." for number in range(8))


def test_two_paragraphs_stand_for_all_before_the_first_section():
    assert said("# T1\n\nOne.\n\nTwo.\n\nThree.")[0] == "# T1\nOne.\nTwo."


def test_a_paragraph_that_begins_with_the_name_does_not_end_with_it_too():
    assert said("# T1: Data Hiding\n\nData Hiding (T1) is bad.")[1] == "Data Hiding (T1) is bad."


def test_sections_are_left_out_by_their_headings():
    assert said(TEXT, "Detection")[0].count("\n") == 2


@pytest.mark.parametrize(
    ("told", "in_another_order"),
    [
        ("Signs of T1 show in: File Access, OS API Execution, Logon.",
         "Signs of T1 show in: Logon, File Access, OS API Execution."),
        ("T1 is mitigated by Code Signing (M1) and Audit (M2).", "T1 is mitigated by Audit (M2), Code Signing (M1)."),
        ("T1 is mitigated by A (M1), B and C (M2) and D (M3).", "T1 is mitigated by D (M3), A (M1), B and C (M2)."),
        ("T1 is mitigated by Audit (M2).", "T1 is mitigated by Audit (M2)."),
        ("- Code: Both Equals() and Hashcode() are defined.", "- Code: Both Equals() and Hashcode() are defined."),
        ("Do: For EJB, use a framework, instead of threads.", "Do: For EJB, use a framework, instead of threads."),
        ("It is met by Code, Keys. More is said of it elsewhere, in long and short.",
         "It is met by Code, Keys. More is said of it elsewhere, in long and short."),
    ],
)  # fmt: skip
def test_the_second_digest_turns_lists_and_leaves_prose(told: str, in_another_order: str):
    in_order, by_part = said(f"# T1: Data Hiding\n\n## Facts\n\n{told}")
    assert in_order == f"# T1: Data Hiding\nFacts: {told}"
    assert by_part == f"Data Hiding (T1). Facts: {in_another_order}"


def test_another_run_says_the_same():
    assert said(TEXT) == said(TEXT)
