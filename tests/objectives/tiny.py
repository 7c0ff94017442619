"""What a preference run is made of, as small as it gets: an engine over a tiny model, and ragged answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tests.making import tiny_config, tiny_model
from velocity.batch import Batch
from velocity.data.encode import TokenSequence
from velocity.distributed.torch_engine import TorchEngine
from velocity.models import attention
from velocity.models.scorer import CausalScorer
from velocity.objectives.answers import LiveReference
from velocity.objectives.objective import Objective

VOCABULARY = 320
PAIRS = ((3, 4, 2), (7, 1, 8), (1, 9, 3), (12, 2, 11), (5, 6, 1))  # tokens of prompt, chosen and rejected answer
ROWS = ((3, 0), (1, 4), (2,))  # how they are packed
GRADIENTS = dict[str, Tensor]


def engine_of(seed: int) -> TorchEngine:
    """The reference engine over a tiny model, with the attention that lets two answers share their prompt."""
    attention.register()
    model = tiny_model(tiny_config(VOCABULARY), seed)
    model.set_attn_implementation(attention.NAME)
    scorer = CausalScorer(model, max_tokens=512)
    return TorchEngine(scorer, torch.optim.SGD(scorer.parameters(), lr=0.1), 1.0)


def reference_of(seed: int) -> LiveReference:
    """A frozen tiny model of another seed."""
    return LiveReference(engine_of(seed))


def record(parts: tuple[int, int, int], seed: int, *, holes: bool = True) -> TokenSequence:
    """A prompt with its answers. With `holes` the third token of a long answer is not trained on: a user's turn."""
    chance, trained = np.random.default_rng(seed), np.zeros(sum(parts), dtype=np.uint8)
    start = parts[0]
    for length in parts[1:]:
        trained[start : start + length] = 1
        if holes and length > 5:
            trained[start + 2] = 0
        start += length
    ids = chance.integers(0, VOCABULARY, sum(parts)).astype(np.int32)
    return TokenSequence(ids, trained, parts=parts, desirable=seed % 3 != 1)


def rows_of(numbers: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Rows of corpus indices, as a loader has them."""
    return [np.array(row, dtype=np.int64) for row in numbers]


def learn(objective: Objective, engine: TorchEngine, batches: Sequence[Batch]) -> tuple[float, GRADIENTS]:
    """Loss and gradients of a global batch in these micro-batches, as the trainer computes them."""
    objective.prepare(engine, batches)
    units, loss = sum(map(objective.units, batches)), 0.0
    for batch in batches:
        total = objective(engine, batch).total / units
        engine.backward(total)
        loss += total.item()
    return loss, gradients_of(engine.scorer.model)


def gradients_of(model: object) -> GRADIENTS:
    """The gradient of every parameter, which is forgotten."""
    assert isinstance(model, torch.nn.Module)
    found = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        found[name], parameter.grad = parameter.grad, None
    return found


def furthest(found: GRADIENTS, expected: GRADIENTS) -> float:
    """The largest difference of two gradients, of any number in any parameter."""
    assert found.keys() == expected.keys() and len(found) > 10
    return max(float((found[name] - value).abs().max()) for name, value in expected.items())


def distance(found: GRADIENTS, expected: GRADIENTS) -> float:
    """How far two gradients are from each other, as a share of their length."""
    assert found.keys() == expected.keys() and len(found) > 10
    one, other = (torch.cat([found[name].flatten() for name in expected]) for found in (found, expected))
    return float((one - other).norm() / other.norm())


def furthest_relative(found: GRADIENTS, expected: GRADIENTS) -> float:
    """The largest difference of a parameter's gradient, as a share of that gradient's length."""
    return max(float((found[name] - value).norm() / value.norm()) for name, value in expected.items())
