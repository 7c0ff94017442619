"""A model with its weights, whole or partitioned over ranks while it loads. It knows no engine."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from velocity.config.sections import ModelConfig
from velocity.errors import UserError
from velocity.models import attention

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_model(
    folder: Path, model: ModelConfig, precision: str, *, zero3: dict[str, Any] | None = None, recompute: bool = False
) -> nn.Module:
    """The causal model of a folder, in training mode.

    `zero3` is the DeepSpeed configuration under which the weights are partitioned while they load. UserError where
    transformers does not know the architecture or the attention implementation.
    """
    attention.register()
    name = attention.NAME if model.attention in ("auto", "varlen") else model.attention
    holder = _partitioned(zero3)
    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=model.trust_remote_code)
        loaded = AutoModelForCausalLM.from_pretrained(
            str(folder), config=config, dtype=DTYPES[precision], attn_implementation=name,
            trust_remote_code=model.trust_remote_code, use_safetensors=True,
        )  # fmt: skip
    except (OSError, ValueError, ImportError) as error:
        fix = (
            "model.trust_remote_code: true runs its own code" if "remote" in str(error) else "another model.attention?"
        )
        raise UserError(f"cannot load the model: {str(error).splitlines()[0]}", str(folder), fix) from None
    finally:
        # While the holder lives, every model that loads is partitioned: the next one, too.
        del holder
        gc.collect()
    loaded.train()
    if recompute:
        loaded.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return loaded  # type: ignore[no-any-return]


def _partitioned(zero3: dict[str, Any] | None) -> Any:
    if zero3 is None:
        return None
    from transformers.integrations import HfDeepSpeedConfig

    return HfDeepSpeedConfig(zero3)
