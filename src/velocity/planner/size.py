"""What a plan needs to know of a model, read from config.json and the sizes of its files; never from weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from velocity.models.locate import weight_files

# What configurations call them: GPT-2, GPT-Neo, MPT and the mixtures of experts have names of their own.
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
HIDDEN = ("hidden_size", "n_embd", "d_model")
HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
INTERMEDIATE = ("moe_intermediate_size", "intermediate_size", "ffn_dim", "n_inner")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
UNGATED = ("gpt2", "gpt_neo", "gpt_neox", "opt", "mpt", "falcon", "bloom", "gptj", "phi")  # two matrices, not three


@dataclass(frozen=True)
class ModelSize:
    """What a plan needs to know of a model; 0 where its configuration does not say.

    `cached` counts the values that one layer keeps of one token while a completion grows: its key and its value.
    `heads` are those of keys and values. `active` are the parameters that a token meets: fewer where it is sent to
    some of the experts.
    """

    parameters: int
    layers: int
    hidden: int
    cached: int = 0
    heads: int = 1
    vocabulary: int = 0
    intermediate: int = 0  # inner width of the layer's MLP, of all experts that a token is sent to
    query_heads: int = 0
    head_dim: int = 0
    tied: bool = False
    gated: bool = True
    experts: int = 0
    active: int = 0
    model_type: str = ""

    @property
    def attended(self) -> int:
        """Width of a token's queries."""
        return self.query_heads * self.head_dim or self.hidden

    @property
    def inner(self) -> int:
        """Inner width of the MLP; four hidden widths where it is not known."""
        return self.intermediate or 4 * self.hidden

    @property
    def embedding(self) -> int:
        """Values of the embedding, and of the head."""
        return self.vocabulary * self.hidden

    @property
    def layer(self) -> int:
        """Parameters of one layer."""
        outside = self.embedding * (1 if self.tied else 2)
        return max(1, (self.parameters - outside) // self.layers)

    @property
    def met(self) -> int:
        """Parameters that a token meets."""
        return self.active or self.parameters

    def kept(self, threshold: int) -> int:
        """Values in tensors of at most `threshold`: what stage 3 does not split."""
        width, kv = self.hidden, self.cached // 2
        shapes = [width * self.attended, width * kv, width * kv, self.attended * width]
        shapes += [width * self.inner] * (3 if self.gated else 2) + [width, width]
        small = sum(shape for shape in shapes if shape <= threshold) * self.layers + width
        return small + sum(self.embedding <= threshold for _ in range(1 if self.tied else 2)) * self.embedding


def model_size(folder: Path) -> ModelSize | None:
    """Read from config.json and the weights' file sizes, or counted from its shapes where there are no files.

    None where the folder has neither (a hub id not fetched).
    """
    if not (folder / "config.json").is_file():
        return None
    whole = json.loads((folder / "config.json").read_text())
    config = {**whole, **whole.get("text_config", {})}
    # the whole's: what is known of a language model that is spread is not known of one with other senses
    shape = {**_shape(config), "model_type": whole.get("model_type", "")}
    size_bytes = _weight_bytes(folder)
    stored = 4 if config.get("dtype", config.get("torch_dtype")) == "float32" else 2
    parameters = (
        _count(shape, int(config.get("num_experts_per_tok") or 1)) if size_bytes is None else size_bytes // stored
    )
    if not parameters:
        return None
    return _with_active(ModelSize(parameters, **shape), int(_first(config, EXPERTS, 0)), config)


def _shape(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a ModelSize that the configuration says."""
    layers, hidden, heads = (_first(config, names, 1) for names in (LAYERS, HIDDEN, HEADS))
    single = config.get("multi_query") and not config.get("new_decoder_architecture")  # Falcon 7B, GPTBigCode
    shared = 1 if single else config.get("num_key_value_heads") or config.get("num_kv_heads") or heads
    head_dim = config.get("head_dim") or hidden // heads
    a_token = config.get("num_experts_per_tok") or 1
    return {
        "layers": layers,
        "hidden": hidden,
        "cached": 2 * shared * head_dim,
        "heads": shared,
        "vocabulary": config.get("vocab_size") or 0,
        "intermediate": int(_first(config, INTERMEDIATE, 0)) * (a_token if _first(config, EXPERTS, 0) else 1),
        "query_heads": heads,
        "head_dim": head_dim,
        # transformers leaves out of config.json what is its default: True but for these
        "tied": bool(config.get("tie_word_embeddings", config.get("model_type") not in ("llama", "mistral", "qwen2"))),
        "gated": config.get("model_type") not in UNGATED,
        "experts": int(_first(config, EXPERTS, 0)),
        "model_type": config.get("model_type", ""),
    }


def _count(shape: Mapping[str, Any], a_token: int) -> int:
    """Parameters of these shapes: embedding, head, and in each layer attention, MLP and two norms; 0 if unknown.

    A token is sent to `a_token` experts, whose width the shape holds together.
    """
    size = ModelSize(1, **shape)
    if not (size.vocabulary and size.hidden > 1):
        return 0
    attention = 2 * size.hidden * size.attended + size.hidden * size.cached
    layer = attention + _mlp(size) * max(1, size.experts) // a_token + 2 * size.hidden
    return size.layers * layer + size.embedding * (1 if size.tied else 2) + size.hidden


def _mlp(size: ModelSize) -> int:
    """Parameters of one MLP, or of as many experts as a token is sent to."""
    return size.hidden * size.inner * (3 if size.gated else 2)


def _with_active(size: ModelSize, experts: int, config: Mapping[str, Any]) -> ModelSize:
    """The size with the parameters that a token meets, where it is sent to some of the experts."""
    if not experts:
        return size
    a_token = int(config.get("num_experts_per_tok") or 1)
    unmet = size.layers * _mlp(size) // a_token * (experts - a_token)
    return ModelSize(**{**vars(size), "active": max(1, size.parameters - unmet)})


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
