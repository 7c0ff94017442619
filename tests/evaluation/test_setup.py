"""What an evaluate job reads: prepared once, described in the run folder, and refused where it is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.evaluating import claimed, evaluation_folder, inputs_of, planned, write_evaluate_job
from tests.evaluation.benchmarking import write_tasks
from tests.making import write_jsonl
from velocity.errors import UserError
from velocity.runs.claim import is_complete


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    return evaluation_folder(tmp_path, 6)


def test_the_run_folder_says_what_is_measured_on(folder: Path):
    run = claimed(planned(write_evaluate_job(folder / "job.yaml")))
    sets = json.loads(run.environment.read_text())["sets"]
    assert {name: (told["kind"], told["rows"]) for name, told in sets.items()} == {
        "texts": ("perplexity", 3), "choices": ("choices", 6), "pairs": ("preference", 6), "said": ("answers", 6),
    }  # fmt: skip
    assert not is_complete(planned(folder / "job.yaml"), "hash")


def test_the_same_inputs_have_the_same_hash_and_others_another(folder: Path):
    job = planned(write_evaluate_job(folder / "job.yaml")).job
    before = inputs_of(job).hash
    assert inputs_of(job).hash == before
    write_jsonl(folder / "pairs.jsonl", [{"prompt": "Why?", "chosen": "so", "rejected": "no"}])
    assert inputs_of(job).hash != before


def test_passages_that_stand_before_questions_are_part_of_the_hash(folder: Path):
    write_jsonl(folder / "corpus.jsonl", [{"text": "A buffer is a copy of an input."}])
    changes = {"retrieval": {"path": str(folder / "corpus.jsonl")}, "data.sequence_length": 400}
    job = planned(write_evaluate_job(folder / "job.yaml", changes)).job
    found = inputs_of(job)
    assert found.hash != inputs_of(planned(write_evaluate_job(folder / "plain.yaml")).job).hash
    lengths = found.sets["choices"].lengths
    assert (lengths > inputs_of(planned(folder / "plain.yaml").job).sets["choices"].lengths).any()


def test_a_wrong_row_is_named_with_its_place_or_left_out(folder: Path):
    with (folder / "choices.jsonl").open("a") as stream:
        stream.write('{"question": "Why?", "choices": ["a", "b"], "answer": 7}\n')
    with pytest.raises(UserError) as error:
        inputs_of(planned(write_evaluate_job(folder / "job.yaml")).job)
    assert error.value.problems[0].where.endswith("choices.jsonl:7 field answer")
    job = planned(write_evaluate_job(folder / "job.yaml", {"data.on_bad_record": "skip"})).job
    found = inputs_of(job).sets["choices"]
    assert (len(found), found.stats["rejected"]) == (6, 1)
    rejected = json.loads((found.folder / "rejected.jsonl").read_text())
    assert (rejected["line"], rejected["field"]) == (7, "answer")


def test_rows_that_no_context_holds_are_refused_before_the_model_loads(folder: Path):
    with pytest.raises(UserError, match="context of 512 tokens"):
        inputs_of(planned(write_evaluate_job(folder / "job.yaml", {"data.sequence_length": 510})).job)
    with pytest.raises(UserError, match="exceeds the model's context"):
        inputs_of(planned(write_evaluate_job(folder / "job.yaml", {"data.sequence_length": 600})).job)


def test_an_empty_set_is_refused(folder: Path):
    (folder / "texts.jsonl").write_text("")
    with pytest.raises(UserError, match="nothing to measure on"):
        inputs_of(planned(write_evaluate_job(folder / "job.yaml")).job)


def test_a_function_that_scores_and_files_of_benchmarks_are_part_of_the_hash(folder: Path):
    (folder / "mine.py").write_text("def score(completion, reference, row):\n    return 1.0\n")
    said = {"path": str(folder / "chats.jsonl"), "kind": "answers", "function": f"{folder}/mine.py:score"}
    job = planned(write_evaluate_job(folder / "job.yaml", {"data.eval": {"said": said}})).job
    before = inputs_of(job).hash
    (folder / "mine.py").write_text("def score(completion, reference, row):\n    return 0.5\n")
    assert inputs_of(job).hash != before
    tasks = write_tasks(folder / "tasks")
    benchmarks = {"tasks": ["colours"], "folder": str(tasks)}
    job = planned(write_evaluate_job(folder / "job.yaml", {"data.eval": {}, "benchmarks": benchmarks})).job
    before = inputs_of(job).hash
    file = next(tasks.glob("*.yaml"))
    file.write_text(file.read_text() + "\n# another version\n")
    assert inputs_of(job).hash != before
