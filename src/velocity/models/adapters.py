"""Adapters by peft: put into a model, switched off, saved, merged. It knows no engine.

An adapter's layers stand inside the model that it was put into, so whatever scores that model scores both.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from velocity.config.adapter import ALL_LINEAR, AdapterConfig
from velocity.errors import JobError, UserError
from velocity.files import whole_folder, write_atomically
from velocity.models.locate import ADAPTER_WEIGHTS

INSIDE = "base_model.model."  # how peft names what lies in the model


def add_adapter(model: nn.Module, config: AdapterConfig, base: tuple[str, str | None], seed: int) -> Any:
    """The peft model around `model`, of which only the adapter can be trained.

    `base` is the model's folder or hub id, and its revision: where peft finds it again. The adapter's
    first factor is random, and the same for the same seed; the second is 0: the model's scores are what they were.
    UserError where a named target is no layer of the model.
    """
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        task_type="CAUSAL_LM", r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout,
        target_modules=config.targets if config.targets == ALL_LINEAR else list(config.targets),
        use_rslora=config.kind == "rslora", use_dora=config.kind == "dora",
        base_model_name_or_path=base[0], revision=base[1],
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, settings, autocast_adapter_dtype=False)
        except ValueError as error:
            linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
            layers = sorted({name.rsplit(".", 1)[-1] for name in linear})
            fix = f"all-linear, or some of {', '.join(layers)}"
            raise UserError(f"no adapter fits: {str(error).splitlines()[0]}", "adapter.targets", fix) from None


def weights_read(model: nn.Module) -> list[tuple[nn.Module, nn.Parameter]]:
    """DoRA's layers, each with the weights of other layers that it reads: ZeRO 3 must gather those, too."""
    return [
        (layer, cast(nn.Parameter, read.weight))
        for module in _tuner_layers(model)
        for name, layer in getattr(module, "lora_magnitude_vector", nn.ModuleDict()).items()
        for read in (module.get_base_layer(), module.lora_A[name])
    ]


def _tuner_layers(model: nn.Module) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """The model scores as if it had no adapter."""
    layers = _tuner_layers(model)
    for layer in layers:
        layer.enable_adapters(enabled=False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(enabled=True)


def save_adapter(adapter: Any, weights: Mapping[str, Tensor], tokenizer: Any, folder: Path, card: str) -> None:
    """`folder` holds the adapter as peft loads it, the tokenizer and a card; it appears whole or not at all.

    `weights` are those of the adapter, under the names of the model that it was put into.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    named = {INSIDE + name: tensor.contiguous() for name, tensor in weights.items()}
    state = get_peft_model_state_dict(adapter, state_dict=named)
    empty = [name for name, tensor in state.items() if not tensor.numel()]
    if empty or not state:
        raise JobError("the adapter came back empty", str(folder), "this is a defect of Velocity; report it")
    config = adapter.peft_config["default"]
    with whole_folder(folder) as temporary:
        save_file(state, temporary / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        config.inference_mode = True
        config.save_pretrained(str(temporary))
        tokenizer.save_pretrained(str(temporary))
        write_atomically(temporary / "README.md", card)
        shutil.copymode(temporary / "README.md", temporary / ADAPTER_WEIGHTS)  # safetensors makes it private


def quantisation(bits: int | None, dtype: torch.dtype) -> Any:
    """What transformers is told to load frozen weights in 4 or 8 bit; UserError where that cannot be done here."""
    if bits is None:
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        fix = "pip install 'ProfoundVelocity[quantised]', or leave adapter.bits out"
        raise UserError(f"{bits}-bit weights need bitsandbytes, which is not installed", "adapter.bits", fix)
    from transformers import BitsAndBytesConfig

    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                              bnb_4bit_compute_dtype=dtype)  # fmt: skip
