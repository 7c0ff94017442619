"""A model with its weights, whole or partitioned over ranks while it loads. It knows no engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from velocity.config.sections import ModelConfig
from velocity.errors import UserError
from velocity.models import attention
from velocity.models.adapters import quantisation

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_model(  # noqa: PLR0913 - all that decides how weights come to lie
    folder: Path,
    model: ModelConfig,
    precision: str,
    *,
    attention_name: str | None = None,
    zero3: dict[str, Any] | None = None,
    bits: int | None = None,
) -> nn.Module:
    """The causal model of a folder, in training mode.

    `attention_name` takes the place of the job's own; `zero3` is the DeepSpeed configuration under which the weights
    are partitioned while they load; `bits` quantises those of the linear layers. UserError where transformers does not
    know the architecture or the attention implementation, or where nothing can quantise here.
    """
    attention.register()
    name = attention_name or (attention.NAME if model.attention in ("auto", "varlen") else model.attention)
    settings = {"trust_remote_code": model.trust_remote_code}
    try:
        with partitioned(zero3):
            config = AutoConfig.from_pretrained(str(folder), **settings)
            loaded = AutoModelForCausalLM.from_pretrained(
                str(folder), config=config, dtype=DTYPES[precision], attn_implementation=name, use_safetensors=True,
                quantization_config=quantisation(bits, DTYPES[precision]), **settings,
            )  # fmt: skip
    except (OSError, ValueError, ImportError) as error:
        fix = (
            "model.trust_remote_code: true runs its own code" if "remote" in str(error) else "another model.attention?"
        )
        raise UserError(f"cannot load the model: {str(error).splitlines()[0]}", str(folder), fix) from None
    loaded.train()
    return loaded  # type: ignore[no-any-return]


@contextmanager
def partitioned(zero3: dict[str, Any] | None) -> Iterator[None]:
    """Inside, what transformers loads is split over the ranks, and peft knows that weights are; None: they are whole.

    The state is global; outside, a model loads whole again.
    """
    if zero3 is None:
        yield
        return
    from transformers.integrations import HfDeepSpeedConfig
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    known = HfDeepSpeedConfig(zero3)  # as long as this object lives
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del known
