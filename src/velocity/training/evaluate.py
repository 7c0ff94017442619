"""Held-out loss and metrics during training: every sequence of each evaluation set once, spread over the ranks.

Shape letters: B rows, S tokens, N sequences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from velocity.batch import IGNORED, Batch
from velocity.distributed import pulse
from velocity.distributed.engine import TrainEngine
from velocity.intervals import Floats, Interval, moments, ratio_interval_of, share_interval
from velocity.objectives.objective import Objective, Policy
from velocity.runs.folder import is_share
from velocity.training.sums import Sums

EvalSets = Mapping[str, Sequence[Batch]]


class Stopped(Exception):
    """Some rank was asked to stop; the evaluation was left."""


@torch.no_grad()
def evaluate(
    engine: TrainEngine, objective: Objective, sets: EvalSets, stopping: Callable[[], bool] = lambda: False
) -> dict[str, dict[str, float]]:
    """For each set its loss, the objective's metrics and its number of units; the same on every rank.

    A loss in nats a token has a perplexity, too. That and shares have a 95 % interval beside them, `_low` and `_high`,
    where there are several sequences. Stopped, on every rank, where `stopping` became true on one: an evaluation can
    last longer than a stop may wait.
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

    per_token = objective.unit == "tokens"
    sums, units, noted = Sums(), 0, _Noted(engine)
    objective.prepare(engine, asked())
    for batch in asked():
        sums.add(objective(noted if per_token else engine, batch))
        units += objective.units(batch)
    units = int(engine.sum_over_ranks(torch.tensor([units])).sum())
    means = sums.over_ranks(engine, max(units, 1))
    if per_token:
        means["perplexity"] = _perplexity(means["loss"])
        bounds = {"perplexity": noted.interval(engine)}
    else:
        shares = {name: share for name, share in means.items() if is_share(name) and 0 <= share <= 1}
        bounds = {name: share_interval(share * units, units) for name, share in shares.items() if units}
    return {**_with_bounds(means, bounds), objective.unit: units}


class _Noted:
    """A policy that notes the `moments` of each sequence's loss and length, for the interval of their ratio."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.moments_5 = policy, np.zeros(5)

    def __call__(self, batch: Batch) -> Tensor:
        """logps_BS of the policy."""
        logps_BS = self.policy(batch)
        nats_N, tokens_N = (_sums_of(values_BS, batch) for values_BS in (-logps_BS, batch.labels_BS != IGNORED))
        self.moments_5 += moments(nats_N, tokens_N)
        return logps_BS

    def interval(self, engine: TrainEngine) -> Interval:
        """Of the perplexity of all ranks' sequences. Every rank calls it."""
        return ratio_interval_of(engine.sum_over_ranks(torch.from_numpy(self.moments_5)).tolist(), _perplexity)


def _sums_of(values_BS: Tensor, batch: Batch) -> Floats:
    """The sum over each of the batch's sequences."""
    rows = zip(values_BS.double().cpu(), batch.lengths_B, strict=True)
    return np.array([float(part.sum()) for row, lengths in rows for part in row[: sum(lengths)].split(lengths)])


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, 700))


def _with_bounds(means: Mapping[str, float], bounds: Mapping[str, Interval]) -> dict[str, float]:
    """The means, each with what it may be behind it, where that is known."""
    found = {}
    for name, value in means.items():
        found[name] = value
        interval = bounds.get(name)
        if interval is not None and interval.low is not None and interval.high is not None:
            found |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
    return found
