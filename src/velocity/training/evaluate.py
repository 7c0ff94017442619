"""Held-out loss and metrics during training: every sequence of each evaluation set once, spread over the ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from velocity.batch import Batch
from velocity.distributed import pulse
from velocity.distributed.engine import TrainEngine
from velocity.objectives.objective import Objective
from velocity.training.sums import Sums

EvalSets = Mapping[str, Sequence[Batch]]


class Stopped(Exception):
    """Some rank was asked to stop; the evaluation was left."""


@torch.no_grad()
def evaluate(
    engine: TrainEngine, objective: Objective, sets: EvalSets, stopping: Callable[[], bool] = lambda: False
) -> dict[str, dict[str, float]]:
    """For each set its loss, the objective's metrics and its number of units; the same on every rank.

    A loss in nats a token has a perplexity, too. Stopped, on every rank, where `stopping` became true on one: an
    evaluation can last longer than a stop may wait.
    """
    engine.train(False)
    results = {name: _score(engine, objective, batches, stopping) for name, batches in sets.items()}
    engine.train(True)
    return results


def _score(
    engine: TrainEngine, objective: Objective, batches: Sequence[Batch], stopping: Callable[[], bool]
) -> dict[str, float]:
    def asked() -> Iterator[Batch]:
        for batch in batches:  # the same number on every rank
            if engine.any_rank(stopping()):
                raise Stopped
            pulse.working_on(batch.records)
            yield batch

    sums, units = Sums(), 0
    objective.prepare(engine, asked())
    for batch in asked():
        sums.add(objective(engine, batch))
        units += objective.units(batch)
    units = int(engine.sum_over_ranks(torch.tensor([units])).sum())
    means = sums.over_ranks(engine, max(units, 1))
    perplexity = {"perplexity": math.exp(min(means["loss"], 700))} if objective.unit == "tokens" else {}
    return {"loss": means.pop("loss"), **perplexity, **means, objective.unit: units}
