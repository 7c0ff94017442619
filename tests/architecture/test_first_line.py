"""Every module says in its first line what it is."""

from __future__ import annotations

import ast

import pytest

from tests.architecture.repository import source_files, syntax


@pytest.mark.parametrize("path", source_files())
def test_a_module_says_in_its_first_line_what_it_is(path: str):
    module = syntax(path)
    docstring = ast.get_docstring(module)
    assert docstring and module.body[0].lineno == 1, f'{path}:1 is not """What it is, and what it does not know."""'
    assert docstring.splitlines()[0].endswith((".", ":")), f"{path}:1 is not a sentence"
