"""What a regular expression finds in an answer."""

from __future__ import annotations

import pytest

from velocity.evaluation.scores.pattern import pattern


@pytest.mark.parametrize(
    ("expression", "completion", "reference", "score"),
    [
        (r"CWE-\d+", "It is CWE-79, I think.", "CWE-79", 1.0),
        (r"CWE-\d+", "It is CWE-78.", "CWE-79", 0.0),
        (r"CWE-\d+", "I do not know.", "CWE-79", 0.0),
        (r"CWE-\d+", "CWE-1 CWE-2 CWE-79", "CWE-79", 0.0),  # the first find counts: naming all is no answer
        (r"answer is (\w+)", "The answer is B, not C", "So the answer is B", 1.0),  # the group, not the words around it
        (r"(?:CWE|cwe)-(\d+)", "cwe-79", "CWE-79", 1.0),
        (r"CWE-\d+", "CWE-78", ["CWE-79", "CWE-78"], 1.0),
        (
            r"^\{.*\}$",
            '{"a": 1}',
            "an answer in JSON",
            1.0,
        ),  # no known answer has it: it says what an answer looks like
        (r"^\{.*\}$", "a: 1", "an answer in JSON", 0.0),
        (r"yes|(no)", "yes", "yes", 1.0),  # a group that took no part: the whole find
    ],
)
def test_the_first_find_of_the_answer_is_that_of_a_known_one(expression: str, completion: str, reference, score: float):
    assert pattern(expression)(completion, reference, {}) == score
