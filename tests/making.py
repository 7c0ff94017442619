"""What tests are made of: a tiny tokenizer, a tiny model folder, data and job files. It needs no network."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import yaml

TEMPLATES = Path(__file__).parent / "fixtures" / "templates"
TEXT = (
    "A buffer overflow happens when a program writes more bytes into a buffer than the buffer can hold. "
    "The attacker controls what lies behind it. Validate the length of every input, and check it again.\n"
    "def copy(source, target):\n    for i, byte in enumerate(source):\n        target[i] = byte\n"
    "Größe, naïve, 日本語, 🙂. What is CWE-121? It is a stack-based buffer overflow. Which input is checked? None is.\n"
    "a [1] b [2] c [3] d [4] e [5] f [6]\n\nOne title\n\nAnother title\n\nA third title\n\n"
)
# Special tokens of each model family: those with a role, then the others. The template `mistral-v1` is of `mistral`.
FAMILIES: dict[str, dict[str, str]] = {
    "smollm2": {"bos": "<|im_start|>", "eos": "<|im_end|>", "pad": "<|im_end|>", "unk": "<|endoftext|>"},
    "llama3": {"bos": "<|begin_of_text|>", "eos": "<|eot_id|>", "pad": "<|end_of_text|>"},
    "qwen2_5": {"eos": "<|im_end|>", "pad": "<|endoftext|>"},
    "qwen3": {"eos": "<|im_end|>", "pad": "<|endoftext|>"},
    "mistral": {"bos": "<s>", "eos": "</s>", "unk": "<unk>"},
}
SPECIAL = {
    "llama3": ["<|start_header_id|>", "<|end_header_id|>"],
    "qwen2_5": ["<|im_start|>"],
    "qwen3": ["<|im_start|>"],
}
# How Llama 3 and Qwen split a text; unlike GPT-2's way it makes one token of several newlines.
NEWER_SPLIT = "|".join([
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"[^\r\n\p{L}\p{N}]?\p{L}+", r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+",
])  # fmt: skip


def read_template(name: str) -> str:
    """Return the text of a template under tests/fixtures/templates."""
    return (TEMPLATES / f"{name}.jinja").read_text("utf-8")


@cache
def _backend(family: str, add_bos: bool) -> str:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    roles = FAMILIES[family]
    special = list(dict.fromkeys([*roles.values(), *SPECIAL.get(family, [])]))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if family in ("llama3", "qwen2_5", "qwen3"):
        splitter = pre_tokenizers.Split(Regex(NEWER_SPLIT), "isolated")
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([splitter, level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + len(special) + 60,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    if add_bos:
        bos = roles["bos"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return str(tokenizer.to_str())


def tiny_tokenizer(template: str | None = "smollm2", *, add_bos: bool = False, family: str | None = None) -> Any:
    """Return a byte-level BPE of about 320 tokens with the named fixture's chat template and its special tokens.

    `template` None: no chat template. `family` names the special tokens where the template does not.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    family = family or (template or "smollm2").split("-")[0]
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_backend(family, add_bos)),
        **{f"{role}_token": token for role, token in FAMILIES[family].items()},
        additional_special_tokens=SPECIAL.get(family, []),
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = None if template is None else read_template(template)
    return made


def tiny_config(vocabulary: int, **changes: Any) -> Any:
    """Return the configuration of a Llama small enough to train in a test."""
    from transformers import LlamaConfig

    settings: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "initializer_range": 0.1,  # far enough from uniform that a wrong token, scale or mask is seen
    }
    return LlamaConfig(**{**settings, **changes})


def tiny_model(config: Any, seed: int = 0) -> Any:
    """Return a causal model of this configuration with random weights, the same for the same seed."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval()  # a model changes its configuration


def tiny_model_folder(  # noqa: PLR0913 - a test names the few that matter to it
    path: Path,
    *,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    tied: bool = False,
    seed: int = 0,
    dtype: str = "float32",
    tokenizer: Any = None,
) -> Path:
    """Make `path` a Hugging Face folder: a tiny random Llama, and a tokenizer with its template (as SmolLM2's)."""
    import torch

    tokenizer = tokenizer or tiny_tokenizer()
    config = tiny_config(
        len(tokenizer),
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    tiny_model(config, seed).to(getattr(torch, dtype)).save_pretrained(str(path))
    tokenizer.save_pretrained(str(path))
    return path


def hollow_model_folder(folder: Path, parameters: int, *, layers: int = 30, hidden: int = 576, **config: Any) -> Path:
    """Make `folder` one with a config, and weights of two bytes a parameter that take no room on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {"num_hidden_layers": layers, "hidden_size": hidden, "dtype": "bfloat16", **config}
    (folder / "config.json").write_text(json.dumps(values))
    with (folder / "model.safetensors").open("wb") as stream:
        stream.truncate(2 * parameters)
    return folder


def chat(*contents: str, system: str | None = None) -> dict[str, Any]:
    """Return a chat row: the user and the assistant in turn say these things."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    return {"messages": [*([{"role": "system", "content": system}] if system is not None else []), *turns]}


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    """Make `path` a file of one JSON value a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def flip(path: Path, place: int) -> None:
    """Change one bit of a file, in the byte at `place`; a negative place counts from the end."""
    with path.open("r+b") as stream:
        stream.seek(place, os.SEEK_END if place < 0 else os.SEEK_SET)
        value = stream.read(1)[0]
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([value ^ 1]))


def job_data(folder: Path) -> dict[str, Any]:
    """Return a small sft job as plain values: everything it names lies in `folder`."""
    return {
        "task": "sft",
        "model": str(folder / "model"),
        "output": str(folder / "run"),
        "data": {
            "train": str(folder / "train.jsonl"),
            "sequence_length": 256,
            "processes": 1,
            "cache": str(folder / "cache"),
        },
        "batch": {"rows": 4},
        "optimizer": {"kind": "sgd", "learning_rate": 0.1, "schedule": "constant", "warmup": 0},
        "duration": {"steps": 2},
    }


def generate_data(folder: Path) -> dict[str, Any]:
    """Return a small generate job as plain values: everything it names lies in `folder`."""
    return {
        "task": "generate",
        "model": str(folder / "model"),
        "output": str(folder / "run"),
        "data": {"prompts": str(folder / "prompts.jsonl"), "cache": str(folder / "cache")},
        "generation": {"max_new_tokens": 8},
    }


def write_job(path: Path, **sections: Any) -> Path:
    """Make `path` a job file: `job_data` of its folder with these sections in place of its own.

    `data` is merged into the section; None leaves a section out.
    """
    job = copy.deepcopy(job_data(path.parent))
    for name, section in sections.items():
        if name == "data" and isinstance(section, dict):
            job["data"].update(section)
        elif section is None:
            job.pop(name, None)
        else:
            job[name] = section
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(json.loads(json.dumps(job, default=str)), sort_keys=False), "utf-8")
    return path
