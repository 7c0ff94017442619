"""An adapter merged into its model: a plain Hugging Face folder again. It runs on the processor and knows no engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from velocity.models.export import save_model
from velocity.models.locate import base_of, check_adapter, locate


def merge(
    adapter: Path, folder: Path, tokenizer: Any, *, turn_ends: Sequence[int], trust_remote_code: bool = False
) -> None:
    """`folder` holds the adapter's model with the adapter's update added to its weights, in the precision it had.

    UserError where that model is not where the adapter says.
    """
    from peft import PeftModel

    check_adapter(adapter)
    source = locate(base_of(adapter))
    model: Any = AutoModelForCausalLM.from_pretrained(
        str(source), dtype="auto", trust_remote_code=trust_remote_code, use_safetensors=True
    )
    dtype = model.dtype
    # added in fp32: an update is often smaller than what 16 bit can tell from the weight beside it
    merged: Any = PeftModel.from_pretrained(model.to(torch.float32), str(adapter)).merge_and_unload(safe_merge=True)
    merged.to(dtype)
    card = (adapter / "README.md").read_text(encoding="utf-8") + "\nThe adapter is merged into the model's weights.\n"
    save_model(merged, merged.state_dict(), tokenizer, folder, card, turn_ends=turn_ends)
