"""Every path that a job reads is named with its key, and can be put elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.making import generate_data, job_data
from velocity.config.load import TASKS
from velocity.config.places import places_of, put

HOME = Path("/home/ann")
TRAINING = {
    **job_data(HOME),
    "model": "base",
    "data": {
        "train": ["a.jsonl", {"path": "b/*.md", "weight": 2}],
        "eval": {"unseen": "c.jsonl", "general": ["d.jsonl", "e.jsonl"]},
        "chat_template": "chat.jinja",
    },
}
GENERATE = {**generate_data(HOME), "model": "runs/sft", "data": {"prompts": ["p.jsonl", "q.jsonl"]}}
EVALUATE = {
    "task": "evaluate",
    "model": "runs/sft",
    "output": "runs/judged",
    "data": {
        "eval": {
            "unseen": "texts.jsonl",
            "said": {"path": "chats.jsonl", "kind": "answers", "function": "scores/mine.py:score"},
        },
    },
    "retrieval": {"path": "corpus.jsonl", "method": "embeddings", "model": "models/e5"},
    "benchmarks": {"tasks": ["ours"], "folder": "my_tasks"},
}
# What every job reads: key, path, and what lies there.
READ: list[tuple[dict[str, Any], list[tuple[str, str, str]]]] = [
    (TRAINING, [
        ("model", "base", "model"), ("data.train", "a.jsonl", "records"), ("data.train", "b/*.md", "records"),
        ("data.eval.unseen", "c.jsonl", "records"), ("data.eval.general", "d.jsonl", "records"),
        ("data.eval.general", "e.jsonl", "records"), ("data.chat_template", "chat.jinja", "file"),
    ]),
    (GENERATE, [
        ("model", "runs/sft", "model"), ("data.prompts", "p.jsonl", "records"), ("data.prompts", "q.jsonl", "records"),
    ]),
    (EVALUATE, [
        ("model", "runs/sft", "model"), ("data.eval.unseen", "texts.jsonl", "records"),
        ("data.eval.said", "chats.jsonl", "records"), ("data.eval.said.function", "scores/mine.py", "file"),
        ("retrieval.path", "corpus.jsonl", "records"), ("retrieval.model", "models/e5", "model"),
        ("benchmarks.folder", "my_tasks", "folder"),
    ]),
]  # fmt: skip
IDS = [job["task"] for job, _ in READ]


def loaded(job: dict[str, Any]) -> Any:
    return TASKS[job["task"]].model_validate(job)


@pytest.mark.parametrize(("job", "expected"), READ, ids=IDS)
def test_every_path_has_the_key_that_names_it(job: dict[str, Any], expected: list[tuple[str, str, str]]):
    assert [place[:3] for place in places_of(loaded(job))] == expected


@pytest.mark.parametrize(("job", "expected"), READ, ids=IDS)
def test_a_path_that_is_put_elsewhere_is_read_there_and_nothing_else_is_another(job: dict[str, Any], expected: Any):
    made = loaded(job)
    values = made.model_dump(mode="json", exclude_unset=True)
    for place in places_of(made):
        put(values, place, f"/there/{place.path}")
    moved = loaded(values)
    assert [place.path for place in places_of(moved)] == [f"/there/{path}" for _, path, _ in expected]
    assert json.loads(json.dumps(values).replace("/there/", "")) == made.model_dump(mode="json", exclude_unset=True)


def test_what_follows_a_path_in_its_value_stays():
    made = loaded(EVALUATE)
    values = made.model_dump(mode="json", exclude_unset=True)
    for place in places_of(made):
        put(values, place, place.path.replace("scores", "elsewhere"))
    assert values["data"]["eval"]["said"]["function"] == "elsewhere/mine.py:score"


def test_a_job_reads_nothing_of_what_it_leaves_out():
    assert [place.key for place in places_of(loaded({**EVALUATE, "retrieval": None, "benchmarks": None}))] == [
        "model", "data.eval.unseen", "data.eval.said", "data.eval.said.function",
    ]  # fmt: skip
