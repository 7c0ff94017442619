"""A score by a user's own Python function, from a file that the job names. What it does wrong is said by its line."""

from __future__ import annotations

import difflib
import importlib.util
import json
import math
import numbers
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from velocity.errors import UserError
from velocity.evaluation.scores.score import Reference, Score, known

SHOWN = 60  # characters of a row in a message
MODULE = "velocity_user_score"


def function(named: str) -> Score:
    """`FILE.py:NAME`, called as NAME(completion, reference, row) for each known answer, of which the best counts.

    UserError where the file or the function is not there, or fails, or says what is no number from 0 to 1.
    """
    path, _, name = named.rpartition(":")
    called = _load(Path(path), name)

    def score(completion: str, reference: Reference, row: Mapping[str, Any], /) -> float:
        return max(_number(called, (completion, one, row), f"{path}:{name}") for one in known(reference))

    return score


def _load(path: Path, name: str) -> Callable[..., Any]:
    where = f"function: {path}:{name}"
    if not path.is_file():
        raise UserError("the file of the scoring function is not there", where, "paths start where the command does")
    spec = importlib.util.spec_from_file_location(MODULE, path)
    assert spec is not None and spec.loader is not None, "it ends in .py"
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's file does
        raise UserError(f"the file of the scoring function fails: {_said(error)}", _line(error, path)) from error
    found = getattr(module, name, None)
    if callable(found):
        called: Callable[..., Any] = found
        return called
    near = difflib.get_close_matches(name, [one for one, value in vars(module).items() if callable(value)], 1)
    what = f"{path} has no function {name}" if found is None else f"{name} of {path} is no function"
    raise UserError(what, where, f"did you mean {near[0]}?" if near else "name a function of that file")


def _number(called: Callable[..., Any], given: tuple[str, str, Mapping[str, Any]], named: str) -> float:
    shown = _shown(given[2])
    try:
        value = called(*given)
    except Exception as error:  # whatever a user's function does
        what = f"the scoring function {named} fails: {_said(error)}"
        raise UserError(what, f"{_line(error, Path(named.rpartition(':')[0]))}, row {shown}") from error
    if isinstance(value, numbers.Real | bool) or hasattr(value, "item"):  # numpy's and torch's numbers, too
        number = float(value)
        if math.isfinite(number) and 0 <= number <= 1:
            return number
    what = f"the scoring function {named} says {value!r:.40}"
    raise UserError(what, f"row {shown}", "return a number from 0, wrong, to 1, right; or True or False")


def _line(error: BaseException, path: Path) -> str:
    """The line of the user's file where it happened."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    ours = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(path.name)]
    return f"{path}, line {ours[-1]}" if ours else str(path)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _shown(row: Mapping[str, Any]) -> str:
    """The row by its id, or by how it begins."""
    if "id" in row:
        return str(row["id"])
    text = json.dumps(dict(row), ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
