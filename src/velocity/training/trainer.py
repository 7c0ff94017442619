"""The training loop. It knows no objective, no ZeRO stage and no tracker by name."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from velocity.batch import Batch
from velocity.config.sections import AnyOptimizer
from velocity.distributed.engine import StepStats, TrainEngine
from velocity.errors import InterruptedRun, JobError
from velocity.objectives.objective import Objective
from velocity.training.callbacks.callback import Callback
from velocity.training.checkpoint import Checkpoints, TrainState
from velocity.training.evaluate import EvalSets, Stopped, evaluate
from velocity.training.schedule import learning_rate
from velocity.training.sums import Sums


@dataclass(frozen=True)
class Plan:
    """When things happen, in steps."""

    total: int
    eval_every: int
    checkpoint_every: int


@dataclass(frozen=True)
class Parts:
    """What a run is made of; built in one place, `training/run.py`."""

    engine: TrainEngine
    objective: Objective
    micro_batches: Callable[[int], Sequence[Batch]]
    eval_sets: EvalSets
    checkpoints: Checkpoints
    callbacks: Sequence[Callback]
    optimizer: AnyOptimizer
    stopping: Callable[[], bool]
    seed: Callable[[int], None]
    measure: Callable[[float], dict[str, float]]


class Trainer:
    """Steps until the plan's end, evaluating and saving on the way."""

    def __init__(self, parts: Parts, plan: Plan, state: TrainState) -> None:
        self.parts, self.plan, self.state = parts, plan, state

    def run(self, *, evaluate_first: bool = True) -> None:
        """The plan is done; InterruptedRun where the run was asked to stop, JobError where it cannot go on."""
        if evaluate_first:
            self._evaluate()
        while self.state.step < self.plan.total:
            self.step()
            if self.state.step % self.plan.eval_every == 0 or self.state.step == self.plan.total:
                self._evaluate()
            if self.state.step % self.plan.checkpoint_every == 0 or self.state.step == self.plan.total:
                self._tell(lambda callback: callback.on_phase("saving a checkpoint"))
                self.parts.checkpoints.save(self.parts.engine, self.state)

    def step(self) -> None:
        """One optimizer step: the gradient of the global batch's summed loss over its units."""
        started, number = time.perf_counter(), self.state.step
        engine, objective = self.parts.engine, self.parts.objective
        self.parts.seed(number)
        micro_batches = self.parts.micro_batches(number)
        counts, tokens = self._agree(micro_batches)
        units = max(counts[objective.unit], 1)
        objective.prepare(engine, micro_batches)
        rate = learning_rate(self.parts.optimizer, number, self.plan.total)
        sums = Sums()
        losses, stats = engine.learn(objective, micro_batches, units, rate)
        for loss in losses:
            sums.add(loss)
        means = sums.over_ranks(engine, units)
        seconds = time.perf_counter() - started
        self._count(stats)
        line = {"step": number + 1, **means, **counts, "learning_rate": rate, "grad_norm": stats.grad_norm,
                "tokens_per_second": tokens / seconds, "seconds": seconds, "skipped": self.state.skipped}  # fmt: skip
        self._tell(lambda callback: callback.on_step({**line, **self.parts.measure(tokens / seconds)}))
        self._give_up_where_nothing_is_learned(micro_batches)

    def _agree(self, micro_batches: Sequence[Batch]) -> tuple[dict[str, int], int]:
        """What the global batch trains on (tokens, and the objective's units), and the tokens it computes.

        A stop that any rank was asked for is agreed on here, by all.
        """
        ours = [
            sum(batch.trained for batch in micro_batches),
            sum(self.parts.objective.units(batch) for batch in micro_batches),
            sum(batch.tokens for batch in micro_batches if batch.records),
        ]
        if self.parts.engine.any_rank(self.parts.stopping()):
            self._stop()
        trained, units, tokens = self.parts.engine.sum_over_ranks(torch.tensor(ours)).tolist()
        return {"tokens": trained, self.parts.objective.unit: units}, tokens

    def _stop(self) -> NoReturn:
        self.parts.checkpoints.save(self.parts.engine, self.state)
        raise InterruptedRun(f"stopped after step {self.state.step}, and saved", fix="run the same command to go on")

    def _count(self, stats: StepStats) -> None:
        self.state.step += 1
        self.state.skipped += stats.skipped
        self.state.skipped_in_a_row = (self.state.skipped_in_a_row + 1) * stats.skipped

    def _give_up_where_nothing_is_learned(self, micro_batches: Sequence[Batch]) -> None:
        if self.state.skipped_in_a_row >= self.parts.optimizer.max_skipped:
            records = [record for batch in micro_batches for record in batch.records]
            raise JobError(
                f"the gradient was not finite in {self.state.skipped_in_a_row} steps in a row, to {self.state.step}",
                f"the last step's records of this rank begin with {', '.join(records[:4])}",
                "lower optimizer.learning_rate, look at these records, or take strategy.precision: bf16 or fp32",
            )

    def _evaluate(self) -> None:
        if self.parts.eval_sets:
            self._tell(lambda callback: callback.on_phase("evaluating"))
        try:
            results = evaluate(self.parts.engine, self.parts.objective, self.parts.eval_sets, self.parts.stopping)
        except Stopped:
            self._stop()
        if results:
            self._tell(lambda callback: callback.on_eval(self.state.step, results))

    def _tell(self, event: Callable[[Callback], Any]) -> None:
        for callback in self.parts.callbacks:
            event(callback)
