"""The tree printed in docs/architecture.md is the tree on disk, both ways. `__init__.py` files go without saying."""

from __future__ import annotations

import ast
import re
import textwrap

from tests.architecture.repository import ROOT, listed_files, source_files, syntax

PAGE = "docs/architecture.md"
TREE = re.compile(r"<!-- tree -->\s*```\w*\n(.*?)```\s*<!-- /tree -->", re.DOTALL)


def parse_tree(text: str) -> dict[str, str]:
    """Return path -> comment of every line of an indented tree; a folder's path ends in a slash."""
    entries: dict[str, str] = {}
    parents: list[tuple[int, str]] = []
    for line in filter(str.strip, text.splitlines()):
        name, _, comment = (part.strip() for part in line.partition("#"))
        indent = len(line) - len(line.lstrip())
        parents = [parent for parent in parents if parent[0] < indent]
        path = (parents[-1][1] if parents else "") + name
        assert path not in entries, f"{PAGE}: the tree lists {path} twice"
        entries[path] = comment
        if name.endswith("/"):
            parents.append((indent, path))
    return entries


def printed_tree() -> dict[str, str]:
    match = TREE.search((ROOT / PAGE).read_text("utf-8"))
    assert match, f"{PAGE} has no fenced block between <!-- tree --> and <!-- /tree -->"
    return parse_tree(match[1])


def first_line(path: str) -> str:
    return (ast.get_docstring(syntax(path)) or "say what it is").splitlines()[0]


def test_a_tree_is_read_by_its_indentation():
    text = """
        src/pack/    # the package
          a.py       # first
          inner/     # a folder
            b.py
          c.py       # after the folder
        docs/        # pages
    """
    assert parse_tree(textwrap.dedent(text)) == {
        "src/pack/": "the package",
        "src/pack/a.py": "first",
        "src/pack/inner/": "a folder",
        "src/pack/inner/b.py": "",
        "src/pack/c.py": "after the folder",
        "docs/": "pages",
    }


def test_the_tree_lists_exactly_the_modules_on_disk():
    on_disk = {path for path in source_files() if not path.endswith("/__init__.py")}
    printed = {path for path in printed_tree() if path.endswith(".py")}
    missing = [f"  {path}  # {first_line(path)}" for path in sorted(on_disk - printed)]
    gone = [f"  {path}" for path in sorted(printed - on_disk)]
    assert on_disk == printed, "\n".join([f"{PAGE}: add to the tree", *missing, "and take out", *gone])


def test_the_tree_lists_exactly_the_packages_on_disk():
    on_disk = {path.removesuffix("__init__.py") for path in source_files() if path.endswith("/__init__.py")}
    printed = {path for path in printed_tree() if path.startswith("src/velocity/") and path.endswith("/")}
    assert on_disk == printed, f"{PAGE}: add {sorted(on_disk - printed)}, take out {sorted(printed - on_disk)}"


def test_the_tree_lists_exactly_the_top_level_folders_on_disk():
    on_disk = {path.split("/")[0] for path in listed_files() if "/" in path and not path.startswith(".")}
    printed = {path.split("/")[0] for path in printed_tree()}
    assert on_disk == printed, f"{PAGE}: add {sorted(on_disk - printed)}, take out {sorted(printed - on_disk)}"


def test_every_line_of_the_tree_says_what_it_is():
    silent = [path for path, comment in printed_tree().items() if not comment]
    assert not silent, f"{PAGE}: no comment after {', '.join(silent)}"


def test_every_module_that_the_page_walks_through_exists():
    named = re.findall(r"`([a-z_]+/[a-z_/]+\.py|cli\.py)`", (ROOT / PAGE).read_text("utf-8"))
    gone = [path for path in named if f"src/velocity/{path}" not in source_files()]
    assert len(named) >= 12, f"{PAGE}: the walk of a record is missing"
    assert not gone, f"{PAGE} names {gone}"
