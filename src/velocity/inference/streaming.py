"""What of a model's shape decides how ZeRO streams it, and whether this machine can read weights from a disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from velocity.distributed.comm import Ranks
from velocity.distributed.ds_config import Shapes
from velocity.errors import UserError
from velocity.models.layers import layers_of
from velocity.terminal import say

SWAPPED_BYTES = 1 << 20  # a rank's share of a parameter that is smaller stays in memory


def shapes_of(folder: Path, dtype: torch.dtype, world_size: int, *, remote_code: bool) -> Shapes:
    """Read from a model without weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=remote_code)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=remote_code)
    counts = [parameter.numel() for parameter in model.parameters()]
    layers = [sum(p.numel() for p in layer.parameters()) for layer in layers_of(model)]
    own = [
        sum(p.numel() // world_size * dtype.itemsize >= SWAPPED_BYTES for p in module.parameters(recurse=False))
        for module in model.modules()
    ]
    return Shapes(max(counts), max(layers, default=max(counts)), max(own))


def prepare_disk(folder: Path, ranks: Ranks) -> None:
    """An empty folder for weights, and DeepSpeed's operator that reads it; UserError where the system has no libaio."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    builder: Any = AsyncIOBuilder()
    if not builder.is_compatible(verbose=False):
        fix = "install them, e.g. apt-get install libaio-dev g++, or use cpu in place of nvme"
        raise UserError("reading weights from a disk needs libaio and a C++ compiler", "strategy.offload", fix)
    if ranks.local_rank == 0:
        try:
            shutil.rmtree(folder, ignore_errors=True)  # of an attempt that was killed
            folder.mkdir(parents=True)
        except OSError as error:
            what = f"no folder for weights: {os.strerror(error.errno or 0)}"
            raise UserError(what, "strategy.offload.path", "name a folder on a fast disk that you may write") from None
    if ranks.first:
        say("preparing DeepSpeed's asynchronous reads; the first time on a machine they are compiled, for minutes …")
    builder.load()
