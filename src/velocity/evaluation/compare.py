"""Runs of evaluate jobs against the first of them, over the rows that both measured: read from their folders alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from velocity.evaluation.differences import Row, differences
from velocity.runs.folder import RunFolder


def comparisons(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """For each run behind the first one: its differences in each measure of each set that both have.

    Runs that are not complete, or that are no evaluation, are left out.
    """
    whole = [folder for folder in folders if RunFolder(folder).evaluation.is_file()]
    return [compare(folder, whole[0]) for folder in whole[1:]]


def compare(ours: Path, theirs: Path) -> dict[str, Any]:
    """How ours differs from theirs, as numbers and in words."""
    run, other = RunFolder(ours), RunFolder(theirs)
    figures, known = (json.loads(one.evaluation.read_text())["sets"] for one in (run, other))
    found = {}
    for name, told in figures.items():
        if name in known and known[name]["kind"] == told["kind"]:
            found[name] = differences(name, told["kind"], _rows(run, name), _rows(other, name))
    return {"run": str(ours), "with": str(theirs), "sets": {name: one for name, one in found.items() if one}}


def _rows(run: RunFolder, name: str) -> list[Row]:
    with (run.rows / f"{name}.jsonl").open(encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]
