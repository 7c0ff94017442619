"""The repository as files and as syntax. It knows no rule: those are the tests beside it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "velocity"
MADE_HERE = {"build", "dist", "runs", "venv"}  # at the top, as .gitignore names them, for a tree without git


@cache
def listed_files() -> tuple[str, ...]:
    """Return the repository's files as sorted paths: what git tracks or would add, or all that no build or run left."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    git = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if (ROOT / ".git").exists() and git.returncode == 0:
        return tuple(sorted(path for path in git.stdout.split("\0") if path and (ROOT / path).is_file()))
    paths = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
    return tuple(sorted(path.as_posix() for path in paths if not _is_made_here(path.parts[:-1])))


def _is_made_here(folders: Sequence[str]) -> bool:
    left = (folder.startswith((".", "__pycache__")) or folder.endswith(".egg-info") for folder in folders)
    return not MADE_HERE.isdisjoint(folders[:1]) or any(left)


def source_files() -> list[str]:
    """Return every Python file of the package as a path from the repository's root."""
    return sorted(path.relative_to(ROOT).as_posix() for path in SOURCE.rglob("*.py"))


@cache
def syntax(path: str) -> ast.Module:
    """Return the parsed file at `path` from the root."""
    return ast.parse((ROOT / path).read_text("utf-8"), filename=path)


def run_tool(*command: str, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a program of this environment in `root`, on the package there; `stdout` holds its output and its errors."""
    program = Path(sys.executable).with_name(command[0])
    environment = {**os.environ, "PYTHONPATH": str(root / "src"), "NO_COLOR": "1"}
    return subprocess.run(
        [str(program), *command[1:]],
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
