"""What a plan needs to know of a model, read from config.json and the sizes of its files; never from weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from velocity.models.locate import weight_files

# What configurations call them: GPT-2, GPT-Neo and MPT have names of their own.
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
HIDDEN = ("hidden_size", "n_embd", "d_model")
HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")


@dataclass(frozen=True)
class ModelSize:
    """What a plan needs to know of a model.

    `cached` counts the values that one layer keeps of one token while a completion grows: its key and its value.
    """

    parameters: int
    layers: int
    hidden: int
    cached: int = 0
    heads: int = 1


def model_size(folder: Path) -> ModelSize | None:
    """Read from config.json and the weights' file sizes; None where the folder has neither (a hub id not fetched)."""
    size_bytes = _weight_bytes(folder)
    if not (folder / "config.json").is_file() or size_bytes is None:
        return None
    config = json.loads((folder / "config.json").read_text())
    config = config.get("text_config", config)
    stored = 4 if config.get("dtype", config.get("torch_dtype")) == "float32" else 2
    parameters = size_bytes // stored
    layers, hidden, heads = (_first(config, names, 1) for names in (LAYERS, HIDDEN, HEADS))
    single = config.get("multi_query") and not config.get("new_decoder_architecture")  # Falcon 7B, GPTBigCode
    shared = 1 if single else config.get("num_key_value_heads") or config.get("num_kv_heads") or heads
    cached = 2 * shared * (config.get("head_dim") or hidden // heads)
    return ModelSize(parameters, layers, hidden, cached, shared)


def _first(config: Mapping[str, Any], names: Sequence[str], default: Any) -> Any:
    return next((config[name] for name in names if config.get(name) is not None), default)


def _weight_bytes(folder: Path) -> int | None:
    """Of the files that transformers loads; where a hub's shards are not fetched, what their index says."""
    names = weight_files(folder)
    if names and all((folder / name).is_file() for name in names):
        return sum((folder / name).stat().st_size for name in names)
    index = folder / "model.safetensors.index.json"
    metadata = json.loads(index.read_text()).get("metadata", {}) if index.is_file() else {}
    total: int | None = metadata.get("total_size")
    return total
