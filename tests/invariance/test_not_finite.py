"""A loss that is not finite on one rank names that rank's records on every rank, and the step changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.pool import Pool
from tests.running import Recorder, built_on, loader_of, make_job, parts_of, prepare_folder
from velocity.batch import Batch
from velocity.distributed.comm import Ranks
from velocity.objectives.causal_lm import CausalLM
from velocity.objectives.objective import LossOutput, Policy
from velocity.training.checkpoint import TrainState
from velocity.training.trainer import Plan, Trainer, records_of


class Spoilt(CausalLM):
    """Next-token prediction whose loss is not finite on the micro-batch that holds a record."""

    def __init__(self, record: str) -> None:
        self.record = record

    def __call__(self, policy: Policy, batch: Batch) -> LossOutput:
        loss = super().__call__(policy, batch)
        return LossOutput(loss.total * float("nan")) if self.record in batch.records else loss


def _step(ranks: Ranks, folder: Path, zero: int) -> tuple[list[list[str]], dict[str, Any], bool]:
    """Our micro-batches' records, the line of a step with a spoilt one, and whether that step was skipped."""
    job = make_job(folder, {"strategy.zero": zero, "launch.processes": 2})
    engine, loader, recorder = built_on(job, ranks).engine, loader_of(job, ranks), Recorder()
    ours = [list(batch.records) for batch in loader.micro_batches(0)]
    other = loader_of(job, Ranks(1, 1, 2)).micro_batches(0)
    parts = replace(parts_of(job, engine, ranks, recorder, loader), objective=Spoilt(records_of(other)[0]))
    trainer = Trainer(parts, Plan(1, eval_every=10**9, checkpoint_every=10**9), TrainState())
    trainer.step()
    engine.engine.destroy()
    return ours, recorder.lines[0], trainer.state.skipped == 1


@pytest.mark.parametrize("zero", [0, 2])
def test_the_records_of_the_rank_with_the_bad_loss_are_named_on_both(pool: Pool, tmp_path: Path, zero: int) -> None:
    (_, first, skipped), (ours, second, also) = pool(_step, prepare_folder(tmp_path), zero)
    assert skipped and also
    assert first["not_finite"] == second["not_finite"] == ours[0]
    assert ours[0] and ours[0] != ours[1], "of two micro-batches one"
