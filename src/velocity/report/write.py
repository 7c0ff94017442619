"""A report is a file: of a run that has ended in its folder, of several side by side wherever it is wanted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from velocity.files import write_atomically
from velocity.report.facts import Run, read_run
from velocity.terminal import say

NAME = "report.html"
Compare: TypeAlias = Callable[[Sequence[Path]], Sequence[Mapping[str, Any]]]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs, each under the shortest end of its path that no other one has; UserError where one is no run."""
    return [read_run(folder, label=label) for folder, label in zip(folders, labels(folders), strict=True)]


def labels(folders: Sequence[Path]) -> list[str]:
    """For each folder the shortest end of its path that tells it from the others."""
    parts = [folder.expanduser().absolute().parts for folder in folders]
    longest = max(map(len, parts))
    for length in range(1, longest + 1):
        found = ["/".join(one[-length:]) for one in parts]
        if len(set(found)) == len(set(parts)):
            return found
    return [str(folder) for folder in folders]


def write_report(folders: Sequence[Path], file: Path | None = None, compare: Compare = lambda folders: ()) -> Path:
    """The report of these runs is that file: of one run, where none is named, report.html in its folder.

    `compare` says how evaluations differ from the first of them.
    """
    from velocity.report.page import render  # it imports matplotlib: only where a page is made

    runs = read_runs(folders)
    target = file or (folders[0].expanduser() / NAME if len(folders) == 1 else Path(NAME))
    write_atomically(target, render(runs, compared=compare(folders)))
    return target


def write_named(paths: Sequence[Path], compare: Compare = lambda folders: ()) -> Path:
    """The report of the runs; where the last path is no folder and ends in .html, it is the file to write."""
    *runs, last = paths
    if runs and last.suffix == ".html" and not last.is_dir():
        return write_report(runs, last, compare)
    return write_report(paths, None, compare)


def report_end(folder: Path) -> bool:
    """The run has ended, and its report lies in its folder, or why not is said: no run fails of its report.

    True where we were asked to stop meanwhile.
    """
    try:
        write_report([folder])
    except KeyboardInterrupt:
        say(f"WARNING: no {NAME}: stopped; velocity show {folder} --html makes it")
        return True
    except Exception as error:  # whatever a folder may hold
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        say(f"WARNING: no {NAME}: {why}; velocity show {folder} --html tries again")
    return False
