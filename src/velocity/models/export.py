"""The tuned model as a plain Hugging Face folder. It knows no engine: it is given whole weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import GenerationConfig

from velocity.errors import JobError
from velocity.files import whole_folder, write_atomically

# Settings that mean nothing without do_sample.
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")


def save_model(  # noqa: PLR0913 - all that a model folder is made of
    model: nn.Module,
    weights: Mapping[str, Tensor],
    tokenizer: Any,
    folder: Path,
    card: str,
    *,
    turn_ends: Sequence[int] = (),
) -> None:
    """`folder` holds model, tokenizer, generation config and card; it appears whole or not at all.

    `turn_ends` are the tokens that end an assistant's turn: generation stops at them.
    """
    empty = [name for name, tensor in weights.items() if not tensor.numel()]
    if empty:
        raise JobError(f"the tensor {empty[0]} came back empty", str(folder), "this is a defect of Velocity; report it")
    hf: Any = model
    hf.generation_config = generation_config(hf, tokenizer, turn_ends)
    with whole_folder(folder) as temporary:
        hf.save_pretrained(str(temporary), state_dict=dict(weights))
        tokenizer.save_pretrained(str(temporary))
        readme = temporary / "README.md"
        write_atomically(readme, card)
        for file in temporary.rglob("*.safetensors"):  # safetensors makes them private, whatever the umask
            shutil.copymode(readme, file)


def generation_config(model: Any, tokenizer: Any, turn_ends: Sequence[int] = ()) -> GenerationConfig:
    """The model's own, with the token that ends an assistant's turn among the stop tokens, as it was trained."""
    config: GenerationConfig = model.generation_config or GenerationConfig()
    ends = {*_as_list(config.eos_token_id), *_as_list(tokenizer.eos_token_id), *turn_ends}
    config.eos_token_id = sorted(ends) if len(ends) > 1 else next(iter(ends), None)
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    if not config.do_sample:
        for name in SAMPLING:  # some models come with both, which transformers reads but refuses to save
            setattr(config, name, None)
    return config


def _as_list(value: int | Sequence[int] | None) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)


def model_card(facts: Mapping[str, Any]) -> str:
    """A short README: what it was trained from and on, and what was measured."""
    sources = "\n".join(
        f"- {source['path']}: {source['records']:,} records, {source['tokens']:,} tokens, "
        f"{source['trained']:,} trained on"
        for source in facts["sources"]
    )
    rows = "".join(f"| {name} | {what} | {one} | {other} |\n" for name, what, one, other in facts["results"])
    table = (
        f"| held-out set | measure | before | after |\n|---|---|---|---|\n{rows}" if rows else "None was asked for.\n"
    )
    return (
        f"---\nbase_model: {facts['base']}\nlibrary_name: {facts['library']}\ntags: [velocity]\n---\n"
        f"# {facts['name']}\n\nTuned by Velocity {facts['version']}: task {facts['task']}, {facts['trained']}, "
        f"{facts['steps']} steps, {facts['tokens']:,} tokens, from `{facts['base']}`.\n\n"
        f"## Trained on\n{sources}\n\n## Evaluation\n{table}\n"
        f"## Settings\n```json\n{json.dumps(facts['settings'], indent=1)}\n```\n"
    )
