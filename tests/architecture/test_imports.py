"""Imports go down only, and what must start at once loads no framework. The layers stand in pyproject.toml."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.architecture.repository import ROOT, run_tool

HEAVY = ["datasets", "deepspeed", "torch", "transformers"]


def lint_imports(*options: str, root: Path = ROOT) -> tuple[bool, str]:
    """Return whether every contract of `root`, or the one that is named, holds, and the report."""
    done = run_tool("lint-imports", "--no-cache", "--no-logo", *options, root=root)
    return done.returncode == 0, done.stdout


def test_every_import_keeps_the_contracts():
    kept, report = lint_imports()
    assert kept, report


@pytest.mark.parametrize(
    ("contract", "module", "line"),
    [
        ("layers", "errors.py", "import velocity.config"),
        ("layers", "data/__init__.py", "import velocity.models"),
        ("layers", "a_new_folder/__init__.py", ""),
        ("no-framework", "planner/__init__.py", "import torch"),
        ("no-framework", "errors.py", "import torch"),
        ("no-circles", "config/base.py", "import velocity.config.job"),
    ],
)
def test_a_contract_catches_what_it_forbids(tmp_path: Path, contract: str, module: str, line: str):
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    broken = tmp_path / "src" / "velocity" / module
    broken.parent.mkdir(exist_ok=True)
    with broken.open("a") as file:
        file.write(f"\n{line}\n")
    kept, report = lint_imports("--contract", contract, root=tmp_path)
    assert not kept
    assert "1 broken" in report, report


@pytest.mark.parametrize("module", ["velocity.cli", "velocity.config.load", "velocity.planner", "velocity.launch"])
def test_importing_it_loads_no_framework(module: str):
    code = f"import json, sys, {module}; print(json.dumps(sorted({set(HEAVY)} & set(sys.modules))))"
    done = run_tool("python", "-c", code)
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout) == [], f"import {module} loads {done.stdout}: import it where it is used"
