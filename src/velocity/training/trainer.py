"""The training loop. It knows no objective, no ZeRO stage and no tracker by name."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from velocity.batch import Batch
from velocity.checkpoints.commit import committed, step_of
from velocity.config.sections import AnyOptimizer
from velocity.distributed import comm, pulse
from velocity.distributed.engine import Loss, StepStats, TrainEngine
from velocity.distributed.pulse import Place
from velocity.errors import InterruptedRun, JobError
from velocity.objectives.objective import Objective
from velocity.training.callbacks.callback import Callback
from velocity.training.checkpoint import Checkpoints, TrainState
from velocity.training.deadline import Deadline
from velocity.training.evaluate import EvalSets, Stopped, evaluate
from velocity.training.schedule import learning_rate
from velocity.training.sums import Sums


@dataclass(frozen=True)
class Plan:
    """When things happen, in steps."""

    total: int
    eval_every: int
    checkpoint_every: int
    score_checkpoints: bool = False  # each one is evaluated, that the best can be kept


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
    deadline: Deadline | None = None  # on the first rank of a run that has one; `stopping` knows of it


class Trainer:
    """Steps until the plan's end, evaluating and saving on the way."""

    def __init__(self, parts: Parts, plan: Plan, state: TrainState) -> None:
        self.parts, self.plan, self.state = parts, plan, state
        self.not_finite: list[str] = []  # records of the last step whose loss was not
        self.scores: dict[str, float] = {}  # the loss of each evaluation set after this step, where it was evaluated

    def run(self, *, evaluate_first: bool = True) -> None:
        """The plan is done; InterruptedRun where the run was asked to stop, JobError where it cannot go on."""
        if evaluate_first:
            self._evaluate()
        while self.state.step < self.plan.total:
            self.step()
            last = self.state.step == self.plan.total
            saves = last or self.state.step % self.plan.checkpoint_every == 0
            if last or self.state.step % self.plan.eval_every == 0 or (saves and self.plan.score_checkpoints):
                self._evaluate()
            if saves:
                self._save()
            self._tell_of_saves()
        self.parts.checkpoints.finish()
        self._tell_of_saves()

    def step(self) -> None:
        """One optimizer step: the gradient of the global batch's summed loss over its units."""
        started, number = time.perf_counter(), self.state.step
        engine, objective = self.parts.engine, self.parts.objective
        pulse.at(number + 1, Place.READS, "reading its records", ())
        self.parts.seed(number)
        micro_batches = self.parts.micro_batches(number)
        pulse.at(number + 1, Place.AGREES, "agreeing with the other ranks", records_of(micro_batches))
        counts, tokens = self._agree(micro_batches)
        units = max(counts[objective.unit], 1)
        objective.prepare(engine, micro_batches)
        rate = learning_rate(self.parts.optimizer, number, self.plan.total)
        sums = Sums()
        pulse.at(number + 1, Place.LEARNS, "learning")
        losses, stats = engine.learn(_noted(objective), micro_batches, units, rate)
        pulse.at(number + 1, Place.SUMS, "adding up", records_of(micro_batches))
        for loss in losses:
            sums.add(loss)
        means = sums.over_ranks(engine, units)
        self.not_finite = [] if math.isfinite(means["loss"]) else _not_finite(losses, micro_batches)
        seconds = time.perf_counter() - started
        if self.parts.deadline is not None:
            self.parts.deadline.step_took(seconds)
        self._count(stats)
        line = {"step": number + 1, **means, **counts, "learning_rate": rate, "grad_norm": stats.grad_norm,
                "tokens_per_second": tokens / seconds, "seconds": seconds, "skipped": self.state.skipped}  # fmt: skip
        pulse.at(number + 1, Place.TELLS, "telling the step's numbers")
        bad = {"not_finite": self.not_finite} if self.not_finite else {}
        self._tell(lambda callback: callback.on_step({**line, **self.parts.measure(tokens / seconds), **bad}))
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
        if self.parts.deadline is not None:
            self.parts.deadline.saves_take(self.parts.checkpoints.save_seconds)
        if self.parts.engine.any_rank(self.parts.stopping()):
            self._stop()
        trained, units, tokens = self.parts.engine.sum_over_ranks(torch.tensor(ours)).tolist()
        return {"tokens": trained, self.parts.objective.unit: units}, tokens

    def _save(self, *, wait: bool = False) -> None:
        pulse.busy("saving a checkpoint", Place.SAVES)
        self._tell(lambda callback: callback.on_phase("saving a checkpoint"))
        if self.parts.deadline is not None:
            self.parts.deadline.saving()
        self.parts.checkpoints.save(self.parts.engine, self.state, self.scores, wait=wait)

    def _tell_of_saves(self) -> None:
        for report in self.parts.checkpoints.reports():
            self._tell(lambda callback, report=report: callback.on_save(report))  # type: ignore[misc]

    def _stop(self) -> NoReturn:
        """What was done is saved, and all ranks leave."""
        step, began = self.state.step, time.perf_counter()
        deadline = self.parts.deadline
        why = "; duration.wall_clock is nearly over" if deadline is not None and deadline.is_near else ""
        if step == 0:  # another attempt begins there by itself
            raise InterruptedRun(f"stopped before the first step{why}", fix="run the same command to go on")
        self._save(wait=True)
        self._tell_of_saves()
        newest = max(map(step_of, committed(self.parts.checkpoints.folder)), default=0)
        saved = f"and saved in {time.perf_counter() - began:.1f} s"
        if newest != step:  # the reason was said
            saved = f"but could not save: it goes on behind step {newest}"
        raise InterruptedRun(f"stopped after step {step}, {saved}{why}", fix="run the same command to go on")

    def _count(self, stats: StepStats) -> None:
        self.state.step += 1
        self.scores = {}
        self.state.skipped += stats.skipped
        self.state.skipped_in_a_row = (self.state.skipped_in_a_row + 1) * stats.skipped

    def _give_up_where_nothing_is_learned(self, micro_batches: Sequence[Batch]) -> None:
        if self.state.skipped_in_a_row >= self.parts.optimizer.max_skipped:
            records = self.not_finite or records_of(micro_batches)
            whose = "the loss was not finite on" if self.not_finite else "its loss was finite; this rank's records were"
            more = f" ({len(records) - 4} more)" if len(records) > 4 else ""
            raise JobError(
                f"the gradient was not finite in {self.state.skipped_in_a_row} steps in a row, to {self.state.step}",
                f"step {self.state.step}: {whose} {', '.join(records[:4])}{more}",
                "lower optimizer.learning_rate, look at these records, or take strategy.precision: bf16 or fp32",
            )

    def _evaluate(self) -> None:
        pulse.at(self.state.step, Place.EVALUATES, "evaluating", ())
        if self.parts.eval_sets:
            self._tell(lambda callback: callback.on_phase("evaluating"))
        try:
            results = evaluate(self.parts.engine, self.parts.objective, self.parts.eval_sets, self.parts.stopping)
        except Stopped:
            self._stop()
        self.scores = {name: result["loss"] for name, result in results.items()}
        if results:
            self._tell(lambda callback: callback.on_eval(self.state.step, results))

    def _tell(self, event: Callable[[Callback], Any]) -> None:
        for callback in self.parts.callbacks:
            event(callback)


def records_of(micro_batches: Sequence[Batch]) -> list[str]:
    """Where the sequences of all of them came from."""
    return [record for batch in micro_batches for record in batch.records]


def _noted(objective: Objective) -> Callable[[Any, Batch], Loss]:
    """The objective, which tells whoever looks at this rank what it is working on."""

    def scored(policy: Any, batch: Batch) -> Loss:
        pulse.working_on(batch.records)
        return objective(policy, batch)

    return scored


def _not_finite(losses: Sequence[Loss], micro_batches: Sequence[Batch]) -> list[str]:
    """The records of the micro-batches whose loss is not finite, of all ranks. Every rank calls it.

    The sum over the ranks was not, and every rank has that; nothing is sent where it is.
    """
    bad = [batch for loss, batch in zip(losses, micro_batches, strict=True) if not loss.total.isfinite()]
    return list(dict.fromkeys(record for records in comm.gather(records_of(bad)) for record in records))
