"""Before any process group exists: what identifies a job's inputs, and what of a prompt the model's context leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.generating import generate_job, inputs_of, planned, question_folder, write_generate_job
from tests.making import TEMPLATES, tiny_tokenizer, write_jsonl
from velocity.errors import UserError
from velocity.inference.setup import prompt_limit

CONTEXT = 512


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    return question_folder(tmp_path, 3)


@pytest.mark.parametrize(
    ("new", "asked", "limit"),
    [(1, None, 511), (12, None, 500), (511, None, 1), (12, 500, 500), (12, 7, 7)],
)
def test_a_prompt_has_what_the_context_leaves_or_what_the_job_allows(
    folder: Path, new: int, asked: int | None, limit: int
):
    job = generate_job(folder, {"generation.max_new_tokens": new, "data.max_prompt_tokens": asked})
    assert prompt_limit(job, folder / "model") == limit


@pytest.mark.parametrize("new", [CONTEXT, CONTEXT + 1])
def test_completions_that_fill_the_context_are_refused_with_the_most_that_there_is(folder: Path, new: int):
    with pytest.raises(UserError, match=f"max_new_tokens={new} fills the model's context of 512 tokens") as caught:
        prompt_limit(generate_job(folder, {"generation.max_new_tokens": new}), folder / "model")
    assert caught.value.problems[0].where == "generation.max_new_tokens"
    assert "at most 511" in caught.value.problems[0].fix


def test_a_longest_prompt_that_does_not_fit_beside_its_completion_is_refused(folder: Path):
    job = generate_job(folder, {"generation.max_new_tokens": 12, "data.max_prompt_tokens": 501})
    with pytest.raises(UserError, match="max_prompt_tokens=501 with 12 new tokens exceeds") as caught:
        prompt_limit(job, folder / "model")
    assert caught.value.problems[0].where == "data.max_prompt_tokens"
    assert "use at most 500" in caught.value.problems[0].fix


@pytest.mark.parametrize("asked", [None, 9000])
def test_a_model_without_a_context_leaves_it_to_the_job(folder: Path, asked: int | None):
    config = json.loads((folder / "model" / "config.json").read_text())
    del config["max_position_embeddings"]
    (folder / "model" / "config.json").write_text(json.dumps(config))
    job = generate_job(folder, {"generation.max_new_tokens": 10_000, "data.max_prompt_tokens": asked})
    assert prompt_limit(job, folder / "model") == asked


def test_the_same_inputs_have_the_same_hash_wherever_the_output_goes(folder: Path):
    one = inputs_of(generate_job(folder))
    other = inputs_of(generate_job(folder, {"output": str(folder / "other"), "data.cache": str(folder / "second")}))
    assert one.hash == other.hash
    assert one.prompts.folder != other.prompts.folder


@pytest.mark.parametrize("changed", ["model", "rows", "tokenizer", "template"])
def test_other_inputs_have_another_hash(folder: Path, changed: str):
    before = inputs_of(generate_job(folder)).hash
    changes: dict[str, Any] = {}
    if changed == "model":
        question_folder(folder, 3, seed=1)
    elif changed == "rows":
        write_jsonl(folder / "prompts.jsonl", [{"prompt": "Another"}])
    elif changed == "tokenizer":
        tokenizer = tiny_tokenizer("qwen2_5")
        tokenizer.save_pretrained(str(folder / "model"))
    else:
        changes = {"data.chat_template": str(TEMPLATES / "qwen2_5.jinja")}
    assert inputs_of(generate_job(folder, changes)).hash != before


def test_a_tokenizer_larger_than_the_embedding_is_refused_before_a_prompt_is_read(folder: Path):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<one more>"])
    tokenizer.save_pretrained(str(folder / "model"))
    (folder / "prompts.jsonl").unlink()
    with pytest.raises(UserError, match="the model embeds only"):
        inputs_of(generate_job(folder))


def test_the_run_folder_is_told_the_prompts_the_model_and_what_was_left_out(folder: Path):
    write_jsonl(folder / "prompts.jsonl", [{"prompt": "Why?"}, {"prompt": 3}])
    job = planned(write_generate_job(folder / "job.yaml", {"data.on_bad_record": "skip"})).job
    inputs = inputs_of(job)
    manifest = inputs.manifest(job)
    assert manifest.hash == inputs.hash
    assert manifest.facts["model_folder"] == str(folder / "model")
    told = manifest.facts["prompts"]
    assert (told["store"], told["records"], told["prompts"], told["rejected"]) == (str(inputs.prompts.folder), 2, 1, 1)
    assert told["files"] == [str(folder / "prompts.jsonl")]
    assert [path.read_text().count("\n") for path in manifest.rejected] == [1]
    assert manifest.deepspeed == {}
