"""A user's scoring function: called for each known answer; what it does wrong is said with file, line and row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from velocity.errors import UserError
from velocity.evaluation.scores.function import function

ROW = {"id": "q7", "question": "Which weakness?"}


def write(folder: Path, body: str) -> str:
    """Return the name of a function `score` with this body."""
    (folder / "mine.py").write_text(f"import math\n\n\ndef score(completion, reference, row):\n    {body}\n")
    return f"{folder / 'mine.py'}:score"


def test_it_is_given_the_answer_a_known_one_and_the_row(tmp_path: Path):
    named = write(tmp_path, "return (completion, reference, row['id']) == ('a', 'b', 'q7')")
    assert function(named)("a", "b", ROW) == 1.0


def test_of_several_known_answers_the_best_counts(tmp_path: Path):
    assert function(write(tmp_path, "return len(reference) / 10"))("a", ["bb", "bbbb", "b"], ROW) == 0.4


def test_numpys_numbers_are_numbers(tmp_path: Path):
    named = write(tmp_path, "import numpy; return numpy.float32(0.5)")
    assert function(named)("a", "b", ROW) == float(np.float32(0.5))


def test_an_error_names_file_line_function_and_row(tmp_path: Path):
    with pytest.raises(UserError) as caught:
        function(write(tmp_path, "return row['answer']"))("a", "b", ROW)
    text = str(caught.value)
    assert "mine.py:score fails: KeyError: 'answer'" in text
    assert "mine.py, line 5, row q7" in text and len(text.splitlines()) <= 3


def test_a_row_without_id_is_shown_by_how_it_begins(tmp_path: Path):
    with pytest.raises(UserError, match=r'row \{"question": "Which'):
        function(write(tmp_path, "return 1 / 0"))("a", "b", {"question": "Which weakness?"})


@pytest.mark.parametrize("value", ["1.5", "-0.1", "math.nan", "None", "'good'"])
def test_what_is_no_number_from_0_to_1_is_refused(value: str, tmp_path: Path):
    with pytest.raises(UserError, match=r"says .*\n.*row q7\n.*from 0, wrong, to 1, right"):
        function(write(tmp_path, f"return {value}"))("a", "b", ROW)


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(UserError, match="is not there"):
        function(f"{tmp_path / 'none.py'}:score")


def test_a_misspelt_function_brings_the_nearest_name(tmp_path: Path):
    with pytest.raises(UserError, match=r"no function scores\n(.*\n)?.*did you mean score\?"):
        function(write(tmp_path, "return 1") + "s")


def test_a_file_that_fails_is_named_with_its_line(tmp_path: Path):
    (tmp_path / "mine.py").write_text("x = 1\ny = nothing\n")
    with pytest.raises(UserError, match=r"fails: NameError.*\n.*mine.py, line 2"):
        function(f"{tmp_path / 'mine.py'}:score")


def test_a_file_that_is_no_python_is_named_with_its_line(tmp_path: Path):
    (tmp_path / "mine.py").write_text("x = 1\ndef score(:\n")
    with pytest.raises(UserError, match=r"SyntaxError.*\n.*mine.py, line 2"):
        function(f"{tmp_path / 'mine.py'}:score")
