"""Measures, before any row is answered, whether an engine's batches give what each prompt gives by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from velocity.errors import UserError
from velocity.inference.cache import RollingCache, own_mask, plain_cache
from velocity.inference.engine import Engine, Step

TOLERANCE = 0.05  # nats; 16-bit rounding moves a log-probability by hundredths, a wrong mask by whole ones
PROMPTS = (11, 5)  # tokens: one prompt is padded


@torch.inference_mode()
def plain_logps(model: Any) -> list[Tensor]:
    """logps_V behind each probe prompt, by the model's own forward: no batch, no padding, no cache."""
    found = []
    for ids in _prompts(model):
        logits_V = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0, -1]
        found.append(logits_V.float().log_softmax(dim=-1).cpu())
    return found


@torch.inference_mode()
def check_engine(engine: Engine, expected: Sequence[Tensor], *, rolls: bool) -> None:
    """Nothing, or UserError where the engine's padded batch, a token behind its cache, is not what was expected."""
    gap = engine_gap(engine, expected, rolls=rolls)
    if not gap <= TOLERANCE:
        name = type(engine.model).__name__
        what = f"{type(engine).__name__} does not compute what {name} is (off by {gap:.2g} nats)"
        fix = "try another generation.engine or model.attention: eager; where none does, it is not supported"
        raise UserError(what, "generation.engine", fix)


@torch.inference_mode()
def engine_gap(engine: Engine, expected: Sequence[Tensor], *, rolls: bool) -> float:
    """How far the log-probabilities behind the probe prompts are from those expected, in nats."""
    prompts = _prompts(engine.model)
    width = max(map(len, prompts)) - 1
    cache: Any = RollingCache() if rolls else plain_cache(engine.model.config)
    padded = [[0] * (width + 1 - len(ids)) + ids for ids in prompts]
    places = [[0] * (width + 1 - len(ids)) + list(range(len(ids))) for ids in prompts]
    real = [[0] * (width + 1 - len(ids)) + [1] * len(ids) for ids in prompts]
    ids_BS, places_BS, real_BS = (torch.tensor(rows, device=engine.device) for rows in (padded, places, real))
    logits_BV = torch.empty(0)
    for first, last in ((0, width), (width, width + 1)):  # a prompt, then one token behind the cache
        real_BK = real_BS[:, :last].bool()
        implementation = engine.model.config._attn_implementation
        mask = own_mask(real_BK, last - first, engine.model.dtype, implementation) if rolls else real_BK.long()
        logits_BV = engine.forward(Step(ids_BS[:, first:last], places_BS[:, first:last], mask, cache))
    logps_BV = logits_BV.log_softmax(dim=-1).cpu()
    # torch's max, not Python's, which drops what is not a number
    return float((logps_BV - torch.stack(list(expected))).abs().max())


def _prompts(model: Any) -> list[list[int]]:
    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(vocabulary, (length,), generator=generator).tolist() for length in PROMPTS]
