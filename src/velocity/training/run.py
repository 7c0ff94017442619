"""One rank of a training job: puts its parts together from the run folder, trains, and leaves the tuned model.

`python -m velocity.distributed.begin velocity.training.run RUN_FOLDER` under torchrun.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from velocity.checkpoints.commit import committed, step_of
from velocity.checkpoints.mirror import FINISH_SECONDS, Mirror
from velocity.config.load import read_resolved
from velocity.config.training import TrainingJob
from velocity.data.loader import Share, TrainLoader
from velocity.distributed import comm, pulse
from velocity.distributed.comm import Ranks
from velocity.distributed.engine import TrainEngine
from velocity.distributed.mesh import build_mesh
from velocity.distributed.pulse import Place
from velocity.errors import InterruptedRun, UserError
from velocity.objectives.build import build_objective
from velocity.runs.folder import RunFolder
from velocity.runs.rank import as_rank
from velocity.training import build
from velocity.training.callbacks.build import build_callbacks
from velocity.training.checkpoint import Checkpoints, TrainState
from velocity.training.deadline import Deadline
from velocity.training.finish import save_result
from velocity.training.retention import judged_by
from velocity.training.total import total_steps
from velocity.training.trainer import Parts, Plan, Trainer

MEMORY_FIX = "strategy.recompute: layers, batch.micro: 1, a shorter data.sequence_length, or strategy.zero: 3"


def train(run: RunFolder, ranks: Ranks, stopping: Callable[[], bool] = lambda: False) -> None:
    """The job of a run folder is done: metrics, checkpoints and model/ are there. `stopping` asks to save and end."""
    job = read_resolved(run.job)
    pulse.watched(job.launch.hang_seconds)
    environment = json.loads(run.environment.read_text())
    comm.check_device(ranks.device, environment["hardware"]["gpus"])
    leaving, deadline = _leaving(run, job, ranks, stopping)
    mesh = build_mesh(job.strategy, ranks)
    share = Share(mesh.data_rank, mesh.data_size, build.micro(job))
    corpus, held_out = build.open_corpora(job, environment["data"])
    loader = TrainLoader(corpus, job, share)
    if ranks.first:
        print("loading the model …", file=sys.stderr, flush=True)
    pulse.busy("loading the model")
    _leave_where_asked(run, leaving)
    built = build.build_engine(job, Path(environment["model_folder"]), json.loads(run.deepspeed.read_text()), mesh)
    _leave_where_asked(run, leaving)
    build.probe(built, job)
    _leave_where_asked(run, leaving)
    total = total_steps(job, loader)
    # before a checkpoint is loaded: the reference is the model that training starts from
    needed = [(corpus, loader.seen(total)), *((one, np.arange(len(one.lengths))) for one in held_out.values())]
    reference = build.build_reference(job, built, environment, needed, mesh, leaving)
    pulse.busy("going on from a checkpoint")
    replay = build.build_replay(job, loader, built.engine)
    losses = judged_by(run, job.checkpoint)
    checkpoints = Checkpoints(run.checkpoints, job.checkpoint, ranks, losses=losses, replay=replay)
    every, scored = job.data.eval_every or max(1, math.ceil(total / 5)), job.checkpoint.best is not None
    plan = Plan(total, every, job.checkpoint.every, score_checkpoints=scored)
    state, evaluate_first = _resume(run, checkpoints, built.engine, plan)
    callbacks = build_callbacks(run.path, job.model_dump(mode="json"), total, state.step) if ranks.first else []
    parts = Parts(
        engine=built.engine,
        objective=build_objective(job, reference),
        micro_batches=loader.micro_batches,
        eval_sets=build.build_eval_sets(job, held_out, share),
        checkpoints=checkpoints,
        callbacks=callbacks,
        optimizer=job.optimizer,
        stopping=leaving,
        seed=build.build_seed(job.seed, mesh.data_rank),
        measure=build.build_measure(built.scorer, environment["hardware"], ranks),
        deadline=deadline,
    )
    with _mirrored(run, job, checkpoints):
        _take_steps(Trainer(parts, plan, state), evaluate_first=evaluate_first)
        pulse.busy("writing the model", Place.SAVES)
        save_result(run, job, built, environment, ranks)
    build.clear_disk(job, ranks)


@contextmanager
def _mirrored(run: RunFolder, job: TrainingJob, checkpoints: Checkpoints) -> Iterator[None]:
    """Checkpoints go to the job's mirror; at the end, which all ranks await, there is time for what is on its way."""
    url, ranks = job.checkpoint.mirror, checkpoints.ranks
    if url is None:
        yield
        return
    mirror = Mirror(url, run.path, first=ranks.first, kept=checkpoints.retention.kept) if ranks.keeps else None
    if mirror is not None:
        checkpoints.committed = mirror.offer
    patience_seconds = 0.0  # of a run that fails
    try:
        yield
        patience_seconds = FINISH_SECONDS
    except InterruptedRun:
        patience_seconds = FINISH_SECONDS
        raise
    finally:
        if mirror is not None:
            pulse.busy("sending to the mirror", Place.SAVES)
            mirror.finish(patience_seconds)
        if patience_seconds:
            comm.wait_for_all()  # torchrun kills who leaves 30 s after the first one


def _leaving(
    run: RunFolder, job: TrainingJob, ranks: Ranks, stopping: Callable[[], bool]
) -> tuple[Callable[[], bool], Deadline | None]:
    """What asks to save and end: a signal or, by the clock of the first rank, that the attempt's time is nearly up."""
    seconds = job.duration.wall_clock_seconds
    if seconds is None or not ranks.first:
        return stopping, None
    deadline = Deadline(seconds, time.time() - run.status().get("started", time.time()))
    return lambda: stopping() or deadline.is_near, deadline


def _leave_where_asked(run: RunFolder, leaving: Callable[[], bool]) -> None:
    """Nothing, or InterruptedRun, on every rank, where one of them is asked to stop while it loads."""
    if comm.any_rank(leaving()):
        whole = committed(run.checkpoints)
        step = f"after step {step_of(whole[-1])}" if whole else "before the first step"
        raise InterruptedRun(f"stopped while loading, {step}", fix="run the same command to go on")


def _take_steps(trainer: Trainer, *, evaluate_first: bool) -> None:
    """The plan is done, and nothing more is told; InterruptedRun, on all ranks together, where it was left."""
    try:
        trainer.run(evaluate_first=evaluate_first)
        return
    except InterruptedRun as error:
        stopped = error
    finally:
        for callback in trainer.parts.callbacks:
            callback.close()
    comm.wait_for_all()  # torchrun kills who leaves 30 s after the first one
    raise stopped


def _resume(run: RunFolder, checkpoints: Checkpoints, engine: TrainEngine, plan: Plan) -> tuple[TrainState, bool]:
    """Where the run goes on, with metrics.jsonl wound back to there; and whether that step is still to be evaluated."""
    state = checkpoints.resume(engine)
    if state.step > plan.total:
        what = f"the run has done {state.step} steps, duration asks for {plan.total}"
        raise UserError(what, "duration", "ask for more, or begin anew with --fresh")
    first = checkpoints.ranks.first
    if first:
        run.rewind(state.step)
    # the first attempt, or one that was stopped between a step and its evaluation
    due = state.step == plan.total or state.step % plan.eval_every == 0
    unscored = first and due and not run.was_evaluated(state.step)
    return state, comm.from_first(unscored)


def main(folder: str) -> int:
    """Train, and say how it went."""
    return as_rank(folder, train, MEMORY_FIX)
