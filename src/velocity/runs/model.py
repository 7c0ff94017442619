"""What identifies a model, and whether its tokenizer fits it. It reads files; no weights into memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from velocity.data.fingerprint import digest, folder_hash
from velocity.errors import UserError

SAMPLE_BYTES = 1 << 20
# What configurations call the most tokens that a model was made for.
CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "seq_length")


def check_vocabulary(model_folder: Path) -> None:
    """Nothing, or UserError where the tokenizer has ids that the model has no embedding for."""
    tokenizer, config = model_folder / "tokenizer.json", json.loads((model_folder / "config.json").read_text())
    size = config.get("vocab_size", config.get("text_config", {}).get("vocab_size"))
    if size is None or not tokenizer.is_file():
        return
    try:
        content = json.loads(tokenizer.read_text(encoding="utf-8"))
        vocabulary = content["model"].get("vocab", {})
    except (ValueError, TypeError, KeyError):
        raise UserError("the tokenizer's file is not valid", str(tokenizer), "copy the model again") from None
    numbers = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    largest = max([*numbers, *(token["id"] for token in content.get("added_tokens", []))], default=0)
    if largest >= size:
        what = f"the tokenizer has a token {largest}, the model embeds only {size}"
        raise UserError(what, str(model_folder), "use the tokenizer that belongs to the model")


def model_hash(folder: Path) -> str:
    """Over the config and, of each weight file, the size and its first and last mebibyte: large models stay quick."""
    parts: list[Any] = [(folder / "config.json").read_text()]
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            head = stream.read(SAMPLE_BYTES)
            stream.seek(max(0, file.stat().st_size - SAMPLE_BYTES))
            parts.append([file.name, file.stat().st_size, digest([head.hex(), stream.read().hex()])])
    return digest(parts)


def model_content(folder: Path, cache: Path) -> str:
    """Over the config and every byte of the weights; it is read once, and then known by the files' times."""
    return digest([(folder / "config.json").read_text(), folder_hash(folder.glob("*.safetensors"), cache)])


def context_length(folder: Path) -> int | None:
    """The most tokens of a prompt with its completion; None where the configuration knows no limit."""
    config = json.loads((folder / "config.json").read_text())
    config = config.get("text_config", config)
    found = (config[name] for name in CONTEXT if config.get(name) is not None)
    return next((int(length) for length in found), None)
