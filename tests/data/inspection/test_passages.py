"""What of each kind of record is looked at."""

from __future__ import annotations

from typing import Any

from tests.making import chat
from velocity.data.inspection.passages import passage_of
from velocity.data.parse import parse


def passage(row: Any):
    return passage_of(parse(row, None, {}))


def test_of_a_text_it_is_the_text():
    found = passage({"text": "one two"})
    assert (found.text, found.answers, found.everything, found.label) == ("one two", (), "one two", "")


def test_of_a_chat_the_system_turn_counts_for_what_must_not_be_there_alone():
    found = passage(chat("Why?", "So.", "When?", "Now.", system="Be short."))
    assert found.text == "Why?\nSo.\nWhen?\nNow."
    assert found.answers == ("So.\nNow.",)
    assert found.everything == "Be short.\nWhy?\nSo.\nWhen?\nNow."


def test_of_a_pair_it_is_the_prompt_with_both_answers_each_by_itself_too():
    found = passage({"prompt": "Why?", "chosen": "So.", "rejected": "No.", "system": "Be short."})
    assert (found.text, found.answers) == ("Why?\nSo.\nNo.", ("So.", "No."))
    assert found.everything == "Be short.\nWhy?\nSo.\nNo."


def test_feedback_has_a_label():
    rows = [{"prompt": "Why?", "completion": "So.", "label": label} for label in (True, False)]
    assert [passage(row).label for row in rows] == ["True", "False"]
    assert passage(rows[0]).text == "Why?\nSo." and passage(rows[0]).answers == ("So.",)


def test_a_call_of_a_tool_is_text():
    turn = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look", "arguments": "{}"}}]}
    found = passage({"messages": [{"role": "user", "content": "Look."}, turn]})
    assert '"look"' in found.text and '"look"' in found.answers[0]
