"""How large a model is, from its config.json and the sizes of its files, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.making import hollow_model_folder
from velocity.planner.size import ModelSize, model_size


def test_a_models_size_is_its_weights_bytes_over_those_of_a_parameter(tmp_path: Path):
    folder = hollow_model_folder(tmp_path, 1000, layers=3, hidden=7)
    assert model_size(folder) == ModelSize(1000, 3, 7, cached=14)  # one head: a key and a value of the hidden width
    hollow_model_folder(tmp_path, 1000, layers=3, hidden=7, dtype="float32")  # 2000 bytes at 4 each
    assert model_size(folder) == ModelSize(500, 3, 7, cached=14)


def test_shards_add_up_and_the_older_name_of_the_dtype_counts(tmp_path: Path):
    hollow_model_folder(tmp_path, 1000, dtype=None)
    (tmp_path / "config.json").write_text('{"torch_dtype": "float32", "num_hidden_layers": 1, "hidden_size": 1}')
    (tmp_path / "other.safetensors").write_bytes(bytes(400))
    index = {"weight_map": {"a": "model.safetensors", "b": "other.safetensors", "c": "other.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert model_size(tmp_path) == ModelSize(600, 1, 1, cached=2)  # 2400 bytes at 4 each


def test_a_model_with_other_senses_is_as_large_as_its_text_part_says(tmp_path: Path):
    hollow_model_folder(tmp_path, 1000, text_config={"num_hidden_layers": 2, "hidden_size": 5, "dtype": "bfloat16"})
    assert model_size(tmp_path) == ModelSize(1000, 2, 5, cached=10)


def test_a_model_that_is_not_here_has_no_size(tmp_path: Path):
    assert model_size(tmp_path) is None
    (tmp_path / "config.json").write_text("{}")
    assert model_size(tmp_path) is None


def test_a_size_is_read_under_the_names_that_gpt2_gives_it(tmp_path: Path):
    folder = hollow_model_folder(tmp_path / "model", 1000)
    (folder / "config.json").write_text(json.dumps({"n_layer": 12, "n_embd": 768}))
    assert model_size(folder) == ModelSize(1000, 12, 768, cached=1536)


def test_weights_that_lie_beside_those_of_the_index_are_not_counted(tmp_path: Path):
    folder = hollow_model_folder(tmp_path / "model", 1000)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "consolidated.safetensors").write_bytes(bytes(2000))
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    found = model_size(folder)
    assert found is not None and found.parameters == 1000


def test_a_hubs_model_whose_shards_are_not_fetched_is_as_large_as_its_index_says(tmp_path: Path):
    folder = hollow_model_folder(tmp_path / "model", 1000)
    (folder / "model.safetensors").unlink()
    index = {"metadata": {"total_size": 4000}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert model_size(folder) == ModelSize(2000, 30, 576, cached=1152)  # 4000 bytes at 2 each
    (folder / "model.safetensors.index.json").write_text(json.dumps({**index, "metadata": {}}))
    assert model_size(folder) is None


@pytest.mark.parametrize(
    ("config", "cached", "heads"),
    [
        # a key and a value for each head: 2 x heads x (hidden / heads)
        ({"num_attention_heads": 9}, 2 * 576, 9),
        ({"num_attention_heads": 9, "num_key_value_heads": 3}, 2 * 3 * 64, 3),  # SmolLM2-135M
        ({"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}, 2 * 8 * 128, 8),  # Qwen3-0.6B
        ({"num_attention_heads": 9, "num_key_value_heads": None, "head_dim": None}, 2 * 576, 9),
        ({"n_head": 12}, 2 * 576, 12),
        ({}, 2 * 576, 1),
    ],
)
def test_a_token_is_kept_as_the_key_and_the_value_of_every_head_that_has_its_own(
    tmp_path: Path, config: dict[str, Any], cached: int, heads: int
):
    found = model_size(hollow_model_folder(tmp_path, 1000, **config))
    assert found is not None and (found.cached, found.heads) == (cached, heads)
