"""What identifies a model, whether its tokenizer fits it, and how much it can read at once."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.making import flip, tiny_model_folder
from velocity.errors import UserError
from velocity.runs.model import check_vocabulary, context_length, model_content, model_hash


@pytest.fixture(name="model")
def _model(tmp_path: Path) -> Path:
    return tiny_model_folder(tmp_path / "model")


CHANGES: dict[str, Callable[[Path], object]] = {
    "a weight at the end": lambda model: flip(model / "model.safetensors", -1),
    "a byte of the header": lambda model: flip(model / "model.safetensors", 9),
    "the config": lambda model: (model / "config.json").write_text((model / "config.json").read_text() + "\n"),
}


def test_a_model_hashes_alike_wherever_and_whenever_it_was_copied(model: Path, tmp_path: Path):
    copied = Path(shutil.copytree(model, tmp_path / "copied"))
    os.utime(copied / "model.safetensors", (1, 1))
    assert model_hash(copied) == model_hash(model)
    assert model_content(copied, tmp_path / "cache") == model_content(model, tmp_path / "cache")


@pytest.mark.parametrize("name", CHANGES)
def test_a_model_that_changes_hashes_differently(model: Path, tmp_path: Path, name: str):
    before = model_hash(model), model_content(model, tmp_path / "cache")
    CHANGES[name](model)
    assert model_hash(model) != before[0]
    assert model_content(model, tmp_path / "cache") != before[1]


def test_of_large_weights_the_end_is_hashed_too(model: Path):
    os.truncate(model / "model.safetensors", 3 << 20)
    before = model_hash(model)
    flip(model / "model.safetensors", -1)
    assert model_hash(model) != before


def test_the_whole_content_is_every_byte_and_the_quick_hash_leaves_out_the_middle_of_large_weights(
    model: Path, tmp_path: Path
):
    os.truncate(model / "model.safetensors", 3 << 20)
    before = model_hash(model), model_content(model, tmp_path / "cache")
    flip(model / "model.safetensors", 3 << 19)
    assert model_hash(model) == before[0]
    assert model_content(model, tmp_path / "cache") != before[1]


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


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"max_position_embeddings": 2048}, 2048),
        ({"n_positions": 1024, "n_ctx": 512}, 1024),  # GPT-2 has both
        ({"max_seq_len": 4096}, 4096),  # MPT
        ({"seq_length": 8192}, 8192),
        ({"max_position_embeddings": None, "n_ctx": 512}, 512),
        ({"text_config": {"max_position_embeddings": 256}, "max_position_embeddings": 77}, 256),
        ({"hidden_size": 64}, None),  # a state-space model, say: no limit
    ],
)
def test_the_context_of_a_model_is_what_its_configuration_says_under_any_of_its_names(
    tmp_path: Path, config: dict[str, Any], length: int | None
):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert context_length(tmp_path) == length


def test_the_context_of_a_model_that_transformers_saved_is_found(model: Path):
    assert context_length(model) == 512
