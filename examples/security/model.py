"""Turns the demo's GGUF model into a plain Hugging Face folder, once. It knows nothing of the text or of training."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# SmolLM2-Instruct: a turn opens with <|im_start|> and ends with <|im_end|>, which is also what generation stops at
# and what padding is filled with (there is no pad token of its own). Written out, because a GGUF file names one id
# each and a loader may leave them out of config.json or generation_config.json: generation would then never stop.
BOS_ID, EOS_ID, PAD_ID = 1, 2, 2
CONTEXT_TOKENS = 8192

REQUIRED = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json", "model.safetensors")
WRITTEN = {*REQUIRED, "chat_template.jinja", "special_tokens_map.json"}


class ModelError(RuntimeError):
    """A model file or folder that cannot be used: says what, where and what to do."""


def convert(gguf: Path, folder: Path) -> None:
    """Make `folder` the model in `gguf` as bf16 safetensors with its tokenizer; does nothing when it is whole already.

    Raises ModelError when the folder holds anything else, or when what was written does not load again.
    """
    if is_whole(folder):
        return
    foreign = sorted({item.name for item in folder.iterdir()} - WRITTEN) if folder.is_dir() else []
    if foreign:
        raise ModelError(f"{folder} holds {foreign[0]}, which is no part of a model: choose an empty or a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with _quiet():
            _write(gguf, draft)
            _check(draft)
        if folder.exists():
            shutil.rmtree(folder)  # half of an earlier copy: nothing but the files that this module writes
        for path in (draft, *draft.iterdir()):  # mkdtemp and safetensors make theirs private
            path.chmod(0o755 if path.is_dir() else 0o644)
        os.replace(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def is_whole(folder: Path) -> bool:
    """Say whether every file of the model is there and its weights have the length that their header promises."""
    if not all((folder / name).is_file() for name in REQUIRED):
        return False
    weights = folder / "model.safetensors"
    try:
        with weights.open("rb") as file:
            (header_bytes,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(header_bytes, weights.stat().st_size)))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (struct.error, ValueError, KeyError, TypeError, AttributeError):
        return False
    return bool(ends) and weights.stat().st_size == 8 + header_bytes + max(ends)


def _write(gguf: Path, folder: Path) -> None:
    """Load the GGUF file and save weights, tokenizer and generation settings into the folder."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, GenerationConfig

    where: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    dense = {}
    if hasattr(transformers, "GgufConfig"):  # it may keep layers in 4-bit blocks; older versions never do
        dense["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(**where, **dense, dtype=torch.bfloat16)
    # save_pretrained refuses a model that says it is quantized; after the load above it no longer is.
    model.config.__dict__.pop("quantization_config", None)
    model.hf_quantizer, model.is_quantized = None, False
    model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id = BOS_ID, EOS_ID, PAD_ID
    model.generation_config = GenerationConfig(bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=PAD_ID)
    model.save_pretrained(folder)
    _tokenizer(where).save_pretrained(folder)


def _tokenizer(where: dict[str, Any]) -> PreTrainedTokenizerBase:
    """Return the GGUF file's tokenizer with what the load loses put back."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(**where)
    # GGUF only *names* the pre-tokenizer ("smollm") and transformers builds GPT-2's, which does not split digits off:
    # spaces before a number would come out as other tokens than the model was trained on.
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.model_max_length = CONTEXT_TOKENS
    return tokenizer


def _check(folder: Path) -> None:
    """Raise ModelError unless the folder loads, gives finite scores and its tokenizer has the chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not tokenizer.chat_template or (tokenizer.eos_token_id, tokenizer.pad_token_id) != (EOS_ID, PAD_ID):
        raise ModelError(f"{folder}: no chat template or not SmolLM2's special tokens: use its own GGUF file")
    model = AutoModelForCausalLM.from_pretrained(folder)
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        if not torch.isfinite(model(**chat).logits).all():
            raise ModelError(f"{folder}: the converted model gives scores that are not finite; delete the GGUF file")


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the progress bars and warnings of every library while a model is loaded and saved; errors still raise."""
    import transformers  # noqa: F401  (first: its log handler keeps the stderr that it finds when it is imported)

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stderr(io.StringIO()):  # the bar over GGUF tensors heeds no setting
            yield
    finally:
        logging.disable(before)
