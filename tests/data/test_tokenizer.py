"""The tokenizer of a folder, its template, and the hash that changes with either."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.making import TEMPLATES, read_template, tiny_tokenizer
from velocity.data.tokenizer import load_tokenizer, tokenizer_hash, turn_ends
from velocity.errors import UserError


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    tiny_tokenizer("llama3", add_bos=True).save_pretrained(str(tmp_path / "model"))
    return tmp_path / "model"


def test_a_folders_tokenizer_is_the_one_that_was_saved_there(folder: Path):
    loaded, saved = load_tokenizer(folder), tiny_tokenizer("llama3", add_bos=True)
    text = "A buffer, <|eot_id|> and 🙂"
    assert loaded(text)["input_ids"] == saved(text)["input_ids"]
    assert loaded(text)["input_ids"][0] == loaded.bos_token_id
    assert loaded.chat_template == read_template("llama3")


def test_a_jobs_template_replaces_the_folders(folder: Path):
    assert load_tokenizer(folder, str(TEMPLATES / "qwen2_5.jinja")).chat_template == read_template("qwen2_5")


def test_a_template_that_is_not_there_is_named_with_its_key(folder: Path, tmp_path: Path):
    with pytest.raises(UserError, match="cannot read the chat template") as caught:
        load_tokenizer(folder, str(tmp_path / "absent.jinja"))
    assert "data.chat_template" in str(caught.value)
    with pytest.raises(UserError, match="cannot read the chat template"):
        tokenizer_hash(folder, str(tmp_path / "absent.jinja"), tmp_path / "cache")


@pytest.mark.parametrize("content", [None, "{", "{}", '{"model": {"type": "BPE"}}'])
def test_a_folder_without_a_tokenizer_that_loads_is_named(folder: Path, content: str | None):
    for file in folder.iterdir():
        file.unlink()
    if content is not None:
        (folder / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match="the model has no tokenizer that loads") as caught:
        load_tokenizer(folder)
    assert len(str(caught.value).splitlines()) == 3


def test_the_hash_changes_with_the_tokenizer_and_with_the_template(folder: Path, tmp_path: Path):
    def now(template: str | None = None) -> str:
        return tokenizer_hash(folder, template, tmp_path / "cache")

    own = tmp_path / "own.jinja"
    own.write_text("{{ messages }}")
    hashes = [now(), now(str(own))]
    own.write_text("{{ messages[0] }}")
    hashes.append(now(str(own)))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    hashes.append(now())
    tiny_tokenizer("llama3").save_pretrained(str(folder))
    hashes.append(now())
    assert len(set(hashes)) == len(hashes)


def test_the_hash_does_not_change_with_the_weights_or_with_the_place(folder: Path, tmp_path: Path):
    first = tokenizer_hash(folder, None, tmp_path / "cache")
    (folder / "model.safetensors").write_bytes(b"other weights")
    assert tokenizer_hash(folder, None, tmp_path / "cache") == first
    shutil.copytree(folder, tmp_path / "copy")
    assert tokenizer_hash(tmp_path / "copy", None, tmp_path / "cache") == first


@pytest.mark.parametrize(
    ("name", "token"),
    [("smollm2", "<|im_end|>"), ("llama3", "<|eot_id|>"), ("qwen2_5", "<|im_end|>"), ("mistral", "</s>"),
     ("mistral-v1", "</s>"), ("qwen3", "<|im_end|>")],
)  # fmt: skip
def test_the_end_of_a_turn_is_the_special_token_behind_it(name: str, token: str):
    tokenizer = tiny_tokenizer(name)
    assert turn_ends(tokenizer) == [tokenizer.convert_tokens_to_ids(token)]


def test_without_a_template_a_turn_has_no_end():
    assert turn_ends(tiny_tokenizer(None)) == []


def test_a_template_for_other_roles_has_no_end_that_we_know_and_no_export_fails_for_it():
    tokenizer = tiny_tokenizer("smollm2")
    tokenizer.chat_template = "{{ raise_exception('only tools speak here') }}"
    assert turn_ends(tokenizer) == []
