"""Held-out loss during training: every sequence of each evaluation set once, spread over the ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch

from velocity.batch import Batch
from velocity.distributed.engine import TrainEngine
from velocity.objectives.objective import Objective

EvalSets = Mapping[str, Sequence[Batch]]


class Stopped(Exception):
    """Some rank was asked to stop; the evaluation was left."""


@torch.no_grad()
def evaluate(
    engine: TrainEngine, objective: Objective, sets: EvalSets, stopping: Callable[[], bool] = lambda: False
) -> dict[str, dict[str, float]]:
    """For each set its loss (nats a token), perplexity and number of labels; the same on every rank.

    Stopped, on every rank, where `stopping` became true on one: an evaluation can last longer than a stop may wait.
    """
    engine.train(False)
    results = {name: _score(engine, objective, batches, stopping) for name, batches in sets.items()}
    engine.train(True)
    return results


def _score(
    engine: TrainEngine, objective: Objective, batches: Sequence[Batch], stopping: Callable[[], bool]
) -> dict[str, float]:
    sums = torch.zeros(2, dtype=torch.float64)
    for batch in batches:  # the same number on every rank
        if engine.sum_over_ranks(torch.tensor([float(stopping())])).sum() > 0:
            raise Stopped
        sums += torch.tensor([float(objective(engine, batch).total), objective.units(batch)], dtype=torch.float64)
    total, units = engine.sum_over_ranks(sums).tolist()
    loss = total / max(units, 1)
    return {"loss": loss, "perplexity": math.exp(min(loss, 700)), "tokens": int(units)}
