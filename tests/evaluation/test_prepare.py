"""Sets are made once, and again where what they depend on has changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluating import evaluation_folder, inputs_of, planned, write_evaluate_job
from tests.making import write_jsonl
from velocity.evaluation.prepare import Preparation


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    return evaluation_folder(tmp_path, 6)


def places(folder: Path, **changes: object) -> dict[str, Path]:
    job = planned(write_evaluate_job(folder / "job.yaml", changes)).job
    return {name: store.folder for name, store in inputs_of(job).sets.items()}


def test_a_set_is_made_once_whatever_else_the_job_measures(folder: Path, monkeypatch: pytest.MonkeyPatch):
    first = places(folder)
    monkeypatch.setattr(Preparation, "tokenizer", property(lambda self: pytest.fail("a cached set needs no tokenizer")))
    assert places(folder) == first
    alone = places(folder, **{"data.eval": {"other": str(folder / "texts.jsonl")}})
    assert alone == {"other": first["texts"]}


def test_a_limit_or_a_row_that_changes_makes_another_set(folder: Path):
    first = places(folder)
    longer = places(folder, **{"data.sequence_length": 200})
    assert all(longer[name] != place for name, place in first.items())
    write_jsonl(folder / "pairs.jsonl", [{"prompt": "Why?", "chosen": "so", "rejected": "no"}])
    changed = places(folder)
    assert {name for name, place in changed.items() if place != first[name]} == {"pairs"}


def test_passages_make_another_set_of_questions_and_none_of_texts(folder: Path):
    write_jsonl(folder / "corpus.jsonl", [{"text": "A buffer is a copy of an input."}])
    settings = {"data.sequence_length": 400}
    plain = places(folder, **settings)
    helped = places(folder, **settings, retrieval={"path": str(folder / "corpus.jsonl")})
    assert {name for name in plain if plain[name] == helped[name]} == {"texts"}
