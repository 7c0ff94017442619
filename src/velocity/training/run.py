"""One rank of a training job: puts its parts together from the run folder, trains, and leaves the tuned model.

`python -m velocity.training.run RUN_FOLDER` under torchrun.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from velocity.config.resolved import read_resolved
from velocity.config.strategy import StrategyConfig
from velocity.data.loader import Share, TrainLoader
from velocity.distributed import comm, failure
from velocity.distributed.comm import Ranks
from velocity.distributed.engine import TrainEngine
from velocity.errors import InterruptedRun, JobError, UserError, VelocityError, from_system
from velocity.models.quiet import quieten
from velocity.objectives.build import build_objective
from velocity.process import die_with_parent
from velocity.training import build
from velocity.training.callbacks.build import build_callbacks
from velocity.training.checkpoint import Checkpoints, TrainState
from velocity.training.finish import save_result
from velocity.training.run_folder import RunFolder
from velocity.training.total import total_steps
from velocity.training.trainer import Parts, Plan, Trainer


def train(run: RunFolder, ranks: Ranks, stopping: Callable[[], bool] = lambda: False) -> None:
    """The job of a run folder is done: metrics, checkpoints and model/ are there. `stopping` asks to save and end."""
    job = read_resolved(run.job)
    environment = json.loads(run.environment.read_text())
    build.check_device(ranks.device, environment["hardware"]["gpus"])
    share = Share(ranks.rank, ranks.world_size, build.micro(job))
    corpus, held_out = build.open_corpora(job, environment["data"])
    loader = TrainLoader(corpus, job, share)
    if ranks.first:
        print("loading the model …", file=sys.stderr, flush=True)
    built = build.build_engine(job, Path(environment["model_folder"]), json.loads(run.deepspeed.read_text()), ranks)
    build.probe(built, job)
    total = total_steps(job, loader)
    # before a checkpoint is loaded: the reference is the model that training starts from
    needed = [(corpus, loader.seen(total)), *((one, np.arange(len(one.lengths))) for one in held_out.values())]
    reference = build.build_reference(job, built, environment, needed, ranks, stopping)
    checkpoints = Checkpoints(
        run.checkpoints, job.checkpoint.keep, first=ranks.first, layout=layout(job.strategy, ranks.world_size)
    )
    state, evaluate_first = _resume(run, checkpoints, built.engine, total)
    callbacks = build_callbacks(run.path, job.model_dump(mode="json"), total, state.step) if ranks.first else []
    parts = Parts(
        engine=built.engine,
        objective=build_objective(job, reference),
        micro_batches=loader.micro_batches,
        eval_sets=build.build_eval_sets(job, held_out, share),
        checkpoints=checkpoints,
        callbacks=callbacks,
        optimizer=job.optimizer,
        stopping=stopping,
        seed=build.build_seed(job.seed, ranks.rank),
        measure=build.build_measure(built.scorer, environment["hardware"], ranks),
    )
    every = job.data.eval_every or max(1, math.ceil(total / 5))
    try:
        Trainer(parts, Plan(total, every, job.checkpoint.every), state).run(evaluate_first=evaluate_first)
    finally:
        for callback in callbacks:
            callback.close()
    save_result(run, job, built, environment, ranks)


def _resume(run: RunFolder, checkpoints: Checkpoints, engine: TrainEngine, total: int) -> tuple[TrainState, bool]:
    """Where the run goes on, with metrics.jsonl wound back to there; and whether that step is still to be evaluated."""
    state = checkpoints.resume(engine)
    if state.step > total:
        what = f"the run has done {state.step} steps, duration asks for {total}"
        raise UserError(what, "duration", "ask for more, or begin anew with --fresh")
    if checkpoints.first:
        run.rewind(state.step)
    # the first attempt, or one that was stopped before its last evaluation was written down
    unscored = checkpoints.first and state.step in (0, total) and not run.was_evaluated(state.step)
    return state, comm.from_first(unscored)


def _stop_flag() -> Callable[[], bool]:
    """True once this process was asked to stop; the trainer agrees on it with the other ranks."""
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: asked.append(received))
    return lambda: bool(asked)


def main(folder: str) -> int:
    """Train, and say how it went: the exit status, and for a failure its cause in the run folder."""
    die_with_parent()
    quieten()
    run, ranks = RunFolder(Path(folder)), comm.from_environment()
    stopping = _stop_flag()  # first of all: a stop while the model loads is kept until the first step
    try:
        comm.start(ranks)
        train(run, ranks, stopping)
        comm.stop()
    except InterruptedRun as stopped:
        if ranks.first:
            run.set_status("interrupted", why=str(stopped))
        return stopped.exit_status
    except VelocityError as error:
        return _failed(run, ranks, error, "")
    except torch.OutOfMemoryError:
        fix = "strategy.recompute: layers, batch.micro: 1, a shorter data.sequence_length, or strategy.zero: 3"
        return _failed(run, ranks, JobError("the GPU's memory is full", _place(ranks), fix), "")
    except OSError as error:
        return _failed(run, ranks, from_system(error, _place(ranks)), traceback.format_exc())
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        shown = JobError(what, _place(ranks), "--debug shows the traceback")
        return _failed(run, ranks, shown, traceback.format_exc())
    return 0


def layout(strategy: StrategyConfig, processes: int) -> str:
    """What DeepSpeed's checkpoints depend on. Tried: stages 1 and 2 share a format, stage 0 is whole on each rank."""
    stage = {0: "0", 1: "1 or 2", 2: "1 or 2", 3: "3"}[int(strategy.zero)]
    ranks = "" if strategy.zero == 0 else f" on {processes} process(es)"
    return f"ZeRO {stage}, {strategy.precision}{ranks}"


def _place(ranks: Ranks) -> str:
    return f"rank {ranks.rank} on {failure.host()}"


def _failed(run: RunFolder, ranks: Ranks, error: VelocityError, trace: str) -> int:
    """The failure lies in the run folder, or on standard error where the folder cannot be written; the exit status."""
    try:
        failure.record(run.failures, ranks.rank, str(error), exit_status=error.exit_status, trace=trace)
    except OSError:
        print(f"error: {error}", file=sys.stderr, flush=True)
    return error.exit_status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
