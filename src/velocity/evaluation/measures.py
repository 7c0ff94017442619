"""What the rows of a set say together: its measures, from the numbers of each row. It knows no model and no file.

A measure is the mean of a number a row, or a function of the ratio of two sums: a perplexity weighs tokens, not rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

BY = {"sum": "accuracy", "token": "accuracy_per_token", "byte": "accuracy_per_byte"}


@dataclass
class Measure:
    """The numbers of a measure, one a row; where it has `bottom`, it is `transform` of the ratio of their sums."""

    better: Literal["higher", "lower"]
    top: list[float] = field(default_factory=list)
    bottom: list[float] | None = None
    transform: Callable[[float], float] = float
    change: Callable[[float], float] = float  # of a difference of two such ratios, as people want it said


def perplexity_of(nats: float) -> float:
    """Of nats a token."""
    return math.exp(min(nats, 700))


def bits_of(nats: float) -> float:
    """Bits of nats."""
    return nats / math.log(2)


def picked(line: Mapping[str, Any]) -> dict[str, int]:
    """Which option of a row is likeliest: by its whole log-probability, by that of a token, by that of a byte."""
    logprobs = line["logprobs"]
    per = {"sum": [1] * len(logprobs), "token": line["tokens"], "byte": line["bytes"]}
    return {
        name: int(np.argmax([logprob / max(size, 1) for logprob, size in zip(logprobs, sizes, strict=True)]))
        for name, sizes in per.items()
    }


def measures_of(kind: str, rows: Iterable[Mapping[str, Any]]) -> dict[str, Measure]:
    """The measures of a set's rows, as rows/NAME.jsonl has them."""
    if kind == "perplexity":
        return _of_texts(rows)
    if kind in ("choices", "preference"):
        return _of_choices(rows)
    return _of_answers(rows)


def _of_texts(rows: Iterable[Mapping[str, Any]]) -> dict[str, Measure]:
    likely = Measure("lower", [], [], perplexity_of, math.expm1)  # a difference of nats is a share of perplexity
    bits = Measure("lower", [], [], bits_of, bits_of)
    assert likely.bottom is not None and bits.bottom is not None, "just made"
    for row in rows:
        likely.top.append(-row["logprob"])
        likely.bottom.append(row["tokens"])
        bits.top.append(-row["logprob"])
        bits.bottom.append(max(row["bytes"], 1))  # a text of special tokens alone has none
    return {"perplexity": likely, "bits_per_byte": bits}


def _of_choices(rows: Iterable[Mapping[str, Any]]) -> dict[str, Measure]:
    found = {name: Measure("higher") for name in BY.values()}
    for row in rows:
        for by, name in BY.items():
            found[name].top.append(float(row["picked"][by] == row["answer"]))
    return found


def _of_answers(rows: Iterable[Mapping[str, Any]]) -> dict[str, Measure]:
    found: dict[str, Measure] = {}
    for row in rows:
        for name, value in row["scores"].items():
            found.setdefault(name, Measure("higher")).top.append(float(value))
    return found
