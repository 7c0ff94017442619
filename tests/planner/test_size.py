"""How large a model is, from its config.json and the sizes of its files, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.making import hollow_model_folder
from velocity.planner.size import model_size


def basics(folder: Path) -> tuple[int, ...]:
    """Parameters, layers, hidden width, and values of a token that a layer keeps."""
    found = model_size(folder)
    assert found is not None
    return found.parameters, found.layers, found.hidden, found.cached


def test_a_models_size_is_its_weights_bytes_over_those_of_a_parameter(tmp_path: Path):
    folder = hollow_model_folder(tmp_path, 1000, layers=3, hidden=7)
    assert basics(folder) == (1000, 3, 7, 14)  # one head: a key and a value of the hidden width
    hollow_model_folder(tmp_path, 1000, layers=3, hidden=7, dtype="float32")  # 2000 bytes at 4 each
    assert basics(folder) == (500, 3, 7, 14)


def test_shards_add_up_and_the_older_name_of_the_dtype_counts(tmp_path: Path):
    hollow_model_folder(tmp_path, 1000, dtype=None)
    (tmp_path / "config.json").write_text('{"torch_dtype": "float32", "num_hidden_layers": 1, "hidden_size": 1}')
    (tmp_path / "other.safetensors").write_bytes(bytes(400))
    index = {"weight_map": {"a": "model.safetensors", "b": "other.safetensors", "c": "other.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert basics(tmp_path) == (600, 1, 1, 2)  # 2400 bytes at 4 each


def test_a_model_with_other_senses_is_as_large_as_its_text_part_says(tmp_path: Path):
    hollow_model_folder(tmp_path, 1000, text_config={"num_hidden_layers": 2, "hidden_size": 5, "dtype": "bfloat16"})
    assert basics(tmp_path) == (1000, 2, 5, 10)


def test_a_model_with_other_senses_is_not_taken_for_its_text_part(tmp_path: Path):
    part = {"model_type": "gemma3_text", "num_hidden_layers": 2, "hidden_size": 5}
    found = model_size(hollow_model_folder(tmp_path, 1000, model_type="gemma3", text_config=part))
    assert found is not None and found.model_type == "gemma3"


def test_a_model_that_is_not_here_has_no_size(tmp_path: Path):
    assert model_size(tmp_path) is None
    (tmp_path / "config.json").write_text("{}")
    assert model_size(tmp_path) is None


def test_a_size_is_read_under_the_names_that_gpt2_gives_it(tmp_path: Path):
    folder = hollow_model_folder(tmp_path / "model", 1000)
    (folder / "config.json").write_text(json.dumps({"n_layer": 12, "n_embd": 768}))
    assert basics(folder) == (1000, 12, 768, 1536)


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
    assert basics(folder) == (2000, 30, 576, 1152)  # 4000 bytes at 2 each
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


# Shapes of published models, and their parameters as their cards and indices count them.
LLAMA_7B = {"model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
            "num_hidden_layers": 32, "num_attention_heads": 32, "tie_word_embeddings": False}  # fmt: skip
LLAMA_70B = {**LLAMA_7B, "vocab_size": 128256, "hidden_size": 8192, "intermediate_size": 28672,
             "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8}  # fmt: skip
SMOLLM2 = {"model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
           "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
           "tie_word_embeddings": True}  # fmt: skip
MIXTRAL = {"model_type": "mixtral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
           "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8,
           "num_experts_per_tok": 2, "tie_word_embeddings": False}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "parameters"),
    [(LLAMA_7B, 6_738_415_616), (LLAMA_70B, 70_553_706_496), (SMOLLM2, 134_515_008), (MIXTRAL, 46_702_792_704)],
)
def test_parameters_are_counted_from_the_shapes_where_no_weights_are(
    tmp_path: Path, config: dict[str, Any], parameters: int
):
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = model_size(tmp_path)
    # Mixtral's routers, 32 x 4096 x 8 values, are left out: 0.002 %
    assert found is not None and found.parameters == pytest.approx(parameters, rel=1e-4)


def test_a_token_meets_the_experts_that_it_is_sent_to(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(MIXTRAL))
    found = model_size(tmp_path)
    assert found is not None and found.met == pytest.approx(12.9e9, rel=0.01)  # arXiv 2401.04088: 13B of 47B
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_7B))
    dense = model_size(tmp_path)
    assert dense is not None and dense.met == dense.parameters
