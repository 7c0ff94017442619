"""What `velocity check` finds of prompts without a model's weights: counts by hand, a prompt as the model sees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.generating import planned, question_folder, write_generate_job
from tests.making import tiny_tokenizer, write_jsonl
from velocity.errors import UserError
from velocity.inference.check import PromptReport, check_job, print_check

WORDS = [1, 2, 2, 3, 30]


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    question_folder(tmp_path)
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "Why? " * count} for count in WORDS])
    return tmp_path


def checked(folder: Path, **changes: Any) -> PromptReport:
    loaded = planned(write_generate_job(folder / "job.yaml", changes))
    return check_job(loaded, folder / "model", lambda text: None)


def lengths() -> list[int]:
    """Tokens of each prompt, by the template and the tokenizer alone."""
    tokenizer = tiny_tokenizer()
    chats = [[{"role": "user", "content": "Why? " * count}] for count in WORDS]
    texts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    return [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]


def test_counts_and_lengths_are_those_of_the_rendered_prompts(folder: Path):
    (folder / "model" / "model.safetensors").write_bytes(b"not looked at")
    found, expected = checked(folder), sorted(lengths())
    assert found.counts == {
        "records": 5, "prompts": 5, "tokens": sum(expected), "rejected": 0, "too_long": 0, "cut": 0
    }  # fmt: skip
    assert found.lengths == {50: expected[2], 90: expected[4], 99: expected[4], 100: expected[4]}
    assert found.shards == 1
    assert 4 < found.shared < min(expected)


def test_what_is_left_out_and_cut_is_counted(folder: Path):
    limit = sorted(lengths())[-2]
    skipped = checked(folder, **{"data.max_prompt_tokens": limit, "data.on_long_prompt": "skip"})
    assert (skipped.counts["prompts"], skipped.counts["rejected"], skipped.counts["too_long"]) == (4, 1, 1)
    cut = checked(folder, **{"data.max_prompt_tokens": limit, "data.on_long_prompt": "cut"})
    assert (cut.counts["prompts"], cut.counts["cut"], cut.lengths[100]) == (5, 1, limit)


def test_a_prompt_is_shown_up_to_where_the_answer_begins(folder: Path):
    assert checked(folder).sample.endswith("<|im_start|>user\nWhy? <|im_end|>\n<|im_start|>assistant\n")


def test_a_row_that_is_wrong_ends_the_check_with_its_place(folder: Path):
    write_jsonl(folder / "prompts.jsonl", [{"prompt": "A"}, {"question": "B"}])
    with pytest.raises(UserError, match="no prompt in the fields"):
        checked(folder)


def test_an_end_token_that_the_model_does_not_have_is_found_before_the_run(folder: Path):
    with pytest.raises(UserError, match="is no single token"):
        checked(folder, **{"generation.end_tokens": "<|eot|>"})


def test_the_report_is_plain_values_and_says_why_the_planner_chose(folder: Path):
    told = json.loads(json.dumps(checked(folder, **{"generation.end_tokens": "<|endoftext|>"}).describe()))
    assert told["ends"] == ["<|endoftext|>", "<|im_end|>"]
    assert told["counts"]["prompts"] == 5
    assert {"generation.engine", "batch.rows", "batch.tokens"} <= set(told["reasons"])
    assert "launch.processes" not in told["reasons"], "the job says so itself"


def test_the_report_is_readable(folder: Path, capsys: pytest.CaptureFixture[str]):
    print_check(checked(folder, **{"generation.stop": ["\n\n", "[end]"]}))
    shown, expected = capsys.readouterr().out, sorted(lengths())
    assert f"5 rows, 5 prompts, {sum(expected)} tokens; 0 left out, 0 cut" in shown
    assert f"50 %: {expected[2]}  90 %: {expected[4]}" in shown
    assert "1 shards, at most 8 new tokens a completion" in shown
    assert r"a completion ends with: <|im_end|>  '\n\n' '[end]'" in shown
    assert shown.endswith("<|im_start|>assistant\n\n")
