"""What every job has: its leaves by name, and the places where they were written, which an error is told of."""

from __future__ import annotations

import pytest

from velocity.config.job import flatten, placed
from velocity.errors import Problem, UserError


def test_flatten_names_each_leaf_by_its_path():
    nested = {"a": {"b": 1, "c": {}}, "d": [{"e": 2}, {"e": 3}], "f": (0.9, 0.95), "g": []}
    assert flatten(nested) == {"a.b": 1, "a.c": {}, "d.0.e": 2, "d.1.e": 3, "f": (0.9, 0.95), "g": []}


ORIGINS = {"seed": "default", "data.train.0.path": "job.yaml:5", "data.train.0.weight": "command line",
           "strategy.zero": "planner: one process", "strategy.precision": "job.yaml:9"}  # fmt: skip


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("data.train.0.path", "job.yaml:5 data.train.0.path"),
        ("data.train", "job.yaml:5 data.train"),  # the first of its leaves that was written
        ("data.tra", "data.tra"),  # no key, though one begins like it
        ("strategy", "job.yaml:9 strategy"),
        ("strategy.zero", "strategy.zero"),  # the planner's choice was not written
        ("seed", "seed"),
        ("train.jsonl:3", "train.jsonl:3"),
    ],
)
def test_an_error_that_names_a_key_says_where_the_key_was_written(where: str, told: str):
    with pytest.raises(UserError) as caught, placed(ORIGINS):
        raise UserError([Problem("it is wrong", where, "mend it"), Problem("this too", "model")])
    assert caught.value.problems == (Problem("it is wrong", told, "mend it"), Problem("this too", "model"))
