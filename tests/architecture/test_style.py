"""What ruff and mypy hold, and the few rules of CONTRIBUTING.md that they cannot."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.repository import ROOT, listed_files, run_tool, source_files, syntax

LONGEST_FUNCTION_LINES = 50
EMPTY_NAMES = {"common", "handler", "handlers", "helper", "helpers", "manager", "managers", "misc", "util", "utils"}
MAY_READ_THE_ENVIRONMENT = ("src/velocity/distributed/comm.py", "src/velocity/launch/", "src/velocity/process.py",
                            "src/velocity/secrets.py")  # fmt: skip
ENVIRONMENT = {"environ", "environb", "getenv", "getenvb"}
LEAKS = {
    "a path of the machine it was written on": re.compile(r"(?<![\w.])/(?:work)/"),
    "the address of a package registry": re.compile(r"https?://\S*(?:pypi|pythonhosted|npmjs|debian)"),
}


@pytest.mark.parametrize("command", ["ruff check .", "ruff format --check .", "mypy"])
def test_the_tool_finds_nothing(command: str):
    done = run_tool(*command.split())
    assert done.returncode == 0, done.stdout


def long_functions(tree: ast.AST) -> Iterator[str]:
    """Yield `name (lines)` of each function that is too long; decorators do not count."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > LONGEST_FUNCTION_LINES:
                yield f"{node.name} ({lines} lines)"


def environment_reads(tree: ast.AST) -> Iterator[int]:
    """Yield the line of each use of os.environ or os.getenv, under whatever name os was imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ENVIRONMENT:
            yield node.lineno
        if isinstance(node, ast.ImportFrom) and node.module == "os" and any(a.name in ENVIRONMENT for a in node.names):
            yield node.lineno


def leaks(text: str) -> Iterator[str]:
    """Yield `line: what` for each line that only makes sense on one machine."""
    for number, line in enumerate(text.splitlines(), start=1):
        yield from (f"{number}: {what}" for what, pattern in LEAKS.items() if pattern.search(line))


def text_of(path: Path) -> str:
    """Return the file's text, or nothing for a binary one."""
    content = path.read_bytes()
    return "" if b"\0" in content else content.decode("utf-8", "replace")


def test_no_function_is_longer_than_fifty_lines():
    found = [f"{path}: {name}" for path in source_files() for name in long_functions(syntax(path))]
    assert not found, "split:\n" + "\n".join(found)


def test_no_file_or_folder_has_a_name_that_says_nothing():
    found = [path for path in source_files() if EMPTY_NAMES & set(re.split(r"[/_.]", path))]
    assert not found, "name it after what it is about:\n" + "\n".join(found)


def test_the_environment_is_read_at_the_edge_only():
    inside = [path for path in source_files() if not path.startswith(MAY_READ_THE_ENVIRONMENT)]
    found = [f"{path}:{line}" for path in inside for line in environment_reads(syntax(path))]
    assert not found, f"pass the value in, or move the read to {MAY_READ_THE_ENVIRONMENT}:\n" + "\n".join(found)


def test_no_file_knows_the_machine_it_was_written_on():
    found = [f"{path}:{leak}" for path in listed_files() for leak in leaks(text_of(ROOT / path))]
    assert not found, "take out:\n" + "\n".join(found)


def test_the_rules_catch_what_they_forbid():
    fifty = "def f():\n" + "    pass\n" * 49
    assert list(long_functions(ast.parse(fifty))) == []
    assert list(long_functions(ast.parse(fifty + "    pass\n"))) == ["f (51 lines)"]
    reads = "import os as o\no.environ['A']\no.getenv('B')\nfrom os import getenv\n"
    assert sorted(environment_reads(ast.parse(reads))) == [2, 3, 4]
    text = "see /wor" + "k/x\nruns/work/x\nhttps://files.python" + "hosted.org/x\nhttps://example.org"
    assert [leak.split(":")[0] for leak in leaks(text)] == ["1", "3"]
