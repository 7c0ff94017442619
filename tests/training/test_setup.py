"""Before any rank exists: whose a run folder is, when it is complete, what is written down, what is refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.making import chat, job_data, write_job, write_jsonl
from tests.running import prepare_folder
from velocity.config.job import LoadedJob, load_job
from velocity.config.resolved import read_resolved
from velocity.distributed import failure
from velocity.distributed.ds_config import deepspeed_config
from velocity.errors import UserError
from velocity.planner.hardware import Hardware
from velocity.planner.plan import resolve
from velocity.training.run_folder import RunFolder
from velocity.training.setup import Inputs, check_vocabulary, claim, is_complete, prepare_inputs

MACHINE = Hardware(2, 8.0, cpu_bf16=False)


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, data, and their cache: no test changes them."""
    return prepare_folder(tmp_path_factory.mktemp("setup"))


def loaded(folder: Path, output: Path, *overrides: str) -> LoadedJob:
    job = load_job(write_job(output.parent / "job.yaml", **{**job_data(folder), "output": str(output)}), overrides)
    return resolve(job, MACHINE, folder / "model")


def inputs_of(job: LoadedJob) -> Inputs:
    return prepare_inputs(job.job, Path(job.job.model.path), lambda text: None)


def claimed(job: LoadedJob, *, fresh: bool = False) -> RunFolder:
    return claim(job, inputs_of(job), MACHINE.describe(), fresh=fresh)


def finish(run: RunFolder) -> None:
    """What the end of a training leaves."""
    run.model.mkdir()
    run.set_status("complete", steps=2)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_claimed_folder_holds_the_job_the_deepspeed_configuration_and_the_environment(folder: Path, tmp_path: Path):
    job = loaded(folder, tmp_path / "run", "launch.processes=2", "strategy.zero=2")
    run = claimed(job)
    assert read_resolved(run.job) == job.job
    assert json.loads(run.deepspeed.read_text()) == deepspeed_config(job.job, 2)
    environment = json.loads(run.environment.read_text())
    assert environment["world_size"] == 2
    assert environment["hardware"] == {"cores": 2, "memory_gib": 8.0, "cpu_bf16": False, "gpus": []}
    assert environment["versions"]["torch"].startswith("2.")
    (entry,) = environment["data"]["train"]
    assert (entry["records"], entry["path"]) == (60, str(folder / "train.jsonl"))
    assert len(entry["hashes"]) == 1 and Path(entry["store"]).is_dir()
    assert run.status() == {"state": "running", "inputs": inputs_of(job).hash}
    assert not run.rejected.exists()


def test_the_whole_content_of_the_model_is_hashed_where_a_reference_is_kept_and_there_alone(tmp_path: Path):
    prepare_folder(tmp_path)
    pairs = write_jsonl(tmp_path / "pairs.jsonl", [{"prompt": "Why?", "chosen": "So.", "rejected": "No."}])

    def content(*overrides: str) -> str | None:
        job = loaded(tmp_path, tmp_path / "run", f"data.train={pairs}", "task=preference", *overrides)
        return inputs_of(job).model_content

    first = content()
    assert first and content("preference.kind=kto") == first
    assert content("preference.reference=live") is None
    assert content("preference.kind=orpo") is None
    assert inputs_of(loaded(tmp_path, tmp_path / "run")).model_content is None
    path = tmp_path / "model" / "model.safetensors"
    weights = bytearray(path.read_bytes())
    weights[len(weights) // 2] ^= 1
    path.write_bytes(weights)
    assert content() not in (first, None)


def test_records_that_were_left_out_are_listed_in_the_run_with_place_and_reason(folder: Path, tmp_path: Path):
    rows = [chat("Why?", "So."), {"messages": "no"}, chat("When?", "Now."), {"text": 3}]
    bad = write_jsonl(tmp_path / "bad.jsonl", rows)
    job = loaded(folder, tmp_path / "run", f"data.train={bad}", f"data.eval={bad}", "data.on_bad_record=skip")
    lines = [json.loads(line) for line in claimed(job).rejected.read_text().splitlines()]
    assert [(line["file"], line["line"], line["field"]) for line in lines] == [
        (str(bad), 2, "messages"), (str(bad), 4, "text"),
    ] * 2  # fmt: skip
    assert lines[1]["reason"] == "'text' is int, not text"


@pytest.mark.parametrize(
    "override",
    ["duration.steps=9", "strategy.zero=3", "strategy.recompute=layers", "launch.processes=2", "checkpoint.every=7",
     "tracking=tensorboard", "batch.micro=1", "data.processes=2", "data.eval_every=3"],
)  # fmt: skip
def test_a_run_goes_on_under_settings_that_do_not_change_what_it_computes(folder: Path, tmp_path: Path, override: str):
    run = claimed(loaded(folder, tmp_path / "run"))
    (run.path / "metrics.jsonl").write_text('{"step": 1}\n')
    changed = loaded(folder, tmp_path / "run", override)
    assert claimed(changed).path == run.path
    assert read_resolved(run.job) == changed.job, "the folder describes the job as it is now"
    assert run.metrics.read_text() == '{"step": 1}\n'


@pytest.mark.parametrize(
    "override", ["seed=1", "optimizer.learning_rate=0.2", "data.sequence_length=512", "batch.rows=2"]
)
def test_another_job_is_refused_by_what_differs_and_changes_nothing(folder: Path, tmp_path: Path, override: str):
    run = claimed(loaded(folder, tmp_path / "run"))
    before = tree(run.path)
    key, _, value = override.partition("=")
    with pytest.raises(UserError, match=rf"belongs to another job; different: {key}: .* → {value}") as caught:
        claimed(loaded(folder, tmp_path / "run", override))
    assert "--fresh" in str(caught.value)
    assert tree(run.path) == before


def test_of_many_differences_three_are_named_and_the_others_counted(folder: Path, tmp_path: Path):
    claimed(loaded(folder, tmp_path / "run"))
    changes = ["seed=1", "batch.rows=2", "optimizer.learning_rate=0.2", "optimizer.momentum=0.5", "data.packing=false"]
    with pytest.raises(UserError, match=r"seed: 0 → 1; .*; .*, and 2 more"):
        claimed(loaded(folder, tmp_path / "run", *changes))


def test_the_same_job_on_data_with_another_content_is_another_job(folder: Path, tmp_path: Path):
    data = write_jsonl(tmp_path / "data.jsonl", [chat("Why?", "So.")])
    job = loaded(folder, tmp_path / "run", f"data.train={data}")
    claimed(job)
    write_jsonl(data, [chat("Why?", "Not so.")])
    with pytest.raises(UserError, match="different: the content of the model or of the data"):
        claimed(job)


def test_fresh_moves_the_old_run_aside_whole(folder: Path, tmp_path: Path):
    old = tree(claimed(loaded(folder, tmp_path / "run")).path)
    run = claimed(loaded(folder, tmp_path / "run", "seed=1"), fresh=True)
    assert read_resolved(run.job).seed == 1
    (aside,) = tmp_path.glob("run.*")
    assert tree(aside) == old


def test_fresh_is_harmless_where_there_is_nothing_to_move(folder: Path, tmp_path: Path):
    assert claimed(loaded(folder, tmp_path / "run"), fresh=True).job.is_file()
    assert [path.name for path in tmp_path.glob("run*")] == ["run"]


def test_a_folder_with_something_else_in_it_is_refused_and_an_empty_one_is_taken(folder: Path, tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("three years")
    with pytest.raises(UserError, match="not empty, and no run of Velocity"):
        claimed(loaded(folder, tmp_path / "run"))
    assert tree(tmp_path / "run") == {"thesis.txt": b"three years"}
    (tmp_path / "run" / "thesis.txt").unlink()
    assert claimed(loaded(folder, tmp_path / "run")).job.is_file()


def test_a_new_attempt_forgets_why_the_last_one_failed(folder: Path, tmp_path: Path):
    run = claimed(loaded(folder, tmp_path / "run"))
    failure.record(run.failures, 0, "the disk was full")
    run.set_status("failed", cause="the disk was full")
    assert failure.cause(claimed(loaded(folder, tmp_path / "run")).failures) is None
    assert run.status()["state"] == "running"


def test_a_run_is_complete_once_it_has_ended_with_a_model(folder: Path, tmp_path: Path):
    job = loaded(folder, tmp_path / "run")
    inputs = inputs_of(job)
    assert not is_complete(job, inputs), "nothing is there"
    run = claimed(job)
    assert not is_complete(job, inputs), "it runs"
    finish(run)
    assert is_complete(job, inputs)
    shutil.rmtree(run.model)
    assert not is_complete(job, inputs), "its model is gone"


@pytest.mark.parametrize(
    ("override", "complete"),
    [("seed=1", False), ("duration.steps=3", False), ("optimizer.momentum=0.5", False),
     ("strategy.zero=3", True), ("launch.processes=2", True), ("tracking=tensorboard", True)],
)  # fmt: skip
def test_a_complete_run_answers_for_the_same_job_of_the_same_duration_only(
    folder: Path, tmp_path: Path, override: str, complete: bool
):
    finish(claimed(loaded(folder, tmp_path / "run")))
    changed = loaded(folder, tmp_path / "run", override)
    assert is_complete(changed, inputs_of(changed)) is complete


def test_a_complete_run_does_not_answer_for_data_with_another_content(folder: Path, tmp_path: Path):
    data = write_jsonl(tmp_path / "data.jsonl", [chat("Why?", "So.")])
    job = loaded(folder, tmp_path / "run", f"data.train={data}")
    finish(claimed(job))
    assert is_complete(job, inputs_of(job))
    write_jsonl(data, [chat("Why?", "Not so.")])
    assert not is_complete(job, inputs_of(job))


@pytest.mark.parametrize("state", ["running", "interrupted", "failed"])
def test_a_run_that_has_not_ended_well_is_not_complete_though_a_model_lies_there(
    folder: Path, tmp_path: Path, state: str
):
    job = loaded(folder, tmp_path / "run")
    run = claimed(job)
    finish(run)
    run.set_status(state)
    assert not is_complete(job, inputs_of(job))


def copy_model(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder / "model", tmp_path / "model"))


def test_inputs_hash_alike_wherever_and_whenever_the_model_was_copied(folder: Path, tmp_path: Path):
    model = copy_model(folder, tmp_path)
    os.utime(model / "model.safetensors", (1, 1))
    job = loaded(folder, tmp_path / "run")
    assert prepare_inputs(job.job, model, lambda text: None).hash == inputs_of(job).hash


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as stream:
        stream.seek(place, os.SEEK_END if place < 0 else os.SEEK_SET)
        value = stream.read(1)[0]
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([value ^ 1]))


CHANGES: dict[str, Callable[[Path], object]] = {
    "a weight at the end": lambda model: flip(model / "model.safetensors", -1),
    "a byte of the header": lambda model: flip(model / "model.safetensors", 9),
    "the config": lambda model: (model / "config.json").write_text((model / "config.json").read_text() + "\n"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_inputs_hash_differently_when_the_model_changes(folder: Path, tmp_path: Path, name: str):
    model = copy_model(folder, tmp_path)
    job = loaded(folder, tmp_path / "run")
    CHANGES[name](model)
    assert prepare_inputs(job.job, model, lambda text: None).hash != inputs_of(job).hash


def test_of_large_weights_the_end_is_hashed_too(folder: Path, tmp_path: Path):
    model = copy_model(folder, tmp_path)
    job = loaded(folder, tmp_path / "run")
    os.truncate(model / "model.safetensors", 3 << 20)
    before = prepare_inputs(job.job, model, lambda text: None).hash
    flip(model / "model.safetensors", -1)
    assert prepare_inputs(job.job, model, lambda text: None).hash != before


def put_vocabulary(folder: Path, config: dict[str, Any], model: dict[str, Any], added: tuple[int, ...] = ()) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    tokens = [{"id": number, "content": f"<{number}>"} for number in added]
    (folder / "tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": tokens}))
    return folder


BPE = {"vocab": {"a": 0, "b": 1, "c": 2}}
UNIGRAM = {"vocab": [["a", -1.0], ["b", -2.0], ["c", -3.0]]}


@pytest.mark.parametrize("model", [BPE, UNIGRAM])
def test_a_tokenizer_of_three_tokens_fits_three_embeddings_and_not_two(tmp_path: Path, model: dict[str, Any]):
    check_vocabulary(put_vocabulary(tmp_path, {"vocab_size": 3}, model))
    check_vocabulary(put_vocabulary(tmp_path, {"vocab_size": 64}, model))
    with pytest.raises(UserError, match="the tokenizer has a token 2, the model embeds only 2"):
        check_vocabulary(put_vocabulary(tmp_path, {"vocab_size": 2}, model))


def test_an_added_token_and_the_size_of_a_models_text_part_count(tmp_path: Path):
    config = {"text_config": {"vocab_size": 4}}
    check_vocabulary(put_vocabulary(tmp_path, config, BPE, (3,)))
    with pytest.raises(UserError, match="a token 4, the model embeds only 4"):
        check_vocabulary(put_vocabulary(tmp_path, config, BPE, (4,)))


def test_what_cannot_be_compared_is_left_to_those_who_load_it(tmp_path: Path):
    check_vocabulary(put_vocabulary(tmp_path, {}, BPE))
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "config.json").write_text('{"vocab_size": 1}')
    check_vocabulary(tmp_path)


def test_a_tokenizer_that_is_torn_is_refused_by_name(tmp_path: Path):
    folder = put_vocabulary(tmp_path, {"vocab_size": 3}, BPE)
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text()[:20])
    with pytest.raises(UserError, match="tokenizer"):
        check_vocabulary(folder)
