"""A question put to a policy before training, answered by measuring: do packed sequences see each other?"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from velocity.data.batch import Batch
from velocity.data.collate import collate
from velocity.data.encode import TokenSequence
from velocity.errors import UserError

LENGTH = 8
TOLERANCE = 0.05  # nats; a leak moves log-probabilities by whole ones, 16-bit rounding by hundredths


def _sequence(seed: int, vocabulary: int) -> TokenSequence:
    ids = np.random.default_rng(seed).integers(0, vocabulary, LENGTH).astype(np.int32)
    return TokenSequence(ids, np.array([0] + [1] * (LENGTH - 1), dtype=np.uint8))


def isolation_gap(policy: Callable[[Batch], Tensor], vocabulary: int) -> float:
    """How far a sequence's log-probabilities move when its neighbour in the row changes: 0 where they are isolated."""
    last = _sequence(0, vocabulary)
    with torch.no_grad():
        one, other = (policy(collate([[_sequence(seed, vocabulary), last]]))[0, LENGTH:] for seed in (1, 2))
    return float((one - other).abs().max())


def check_isolation(policy: Callable[[Batch], Tensor], vocabulary: int) -> None:
    """Nothing, or UserError where packed sequences see each other."""
    gap = isolation_gap(policy, vocabulary)
    if not gap <= TOLERANCE or math.isnan(gap):
        what = f"packed sequences see each other with this model's attention (by {gap:.2g} nats)"
        raise UserError(what, "model.attention", "set model.attention: auto, or data.packing: false")
