"""One rank of a training job: puts its parts together from the run folder, trains, and leaves the tuned model.

`python -m velocity.training.run RUN_FOLDER` under torchrun.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from velocity.config.load import read_resolved
from velocity.config.strategy import StrategyConfig
from velocity.data.loader import Share, TrainLoader
from velocity.distributed import comm
from velocity.distributed.comm import Ranks
from velocity.distributed.engine import TrainEngine
from velocity.distributed.mesh import build_mesh
from velocity.errors import UserError
from velocity.objectives.build import build_objective
from velocity.runs.folder import RunFolder
from velocity.runs.rank import as_rank
from velocity.training import build
from velocity.training.callbacks.build import build_callbacks
from velocity.training.checkpoint import Checkpoints, TrainState
from velocity.training.finish import save_result
from velocity.training.total import total_steps
from velocity.training.trainer import Parts, Plan, Trainer

MEMORY_FIX = "strategy.recompute: layers, batch.micro: 1, a shorter data.sequence_length, or strategy.zero: 3"


def train(run: RunFolder, ranks: Ranks, stopping: Callable[[], bool] = lambda: False) -> None:
    """The job of a run folder is done: metrics, checkpoints and model/ are there. `stopping` asks to save and end."""
    job = read_resolved(run.job)
    environment = json.loads(run.environment.read_text())
    comm.check_device(ranks.device, environment["hardware"]["gpus"])
    mesh = build_mesh(job.strategy, ranks)
    share = Share(mesh.data_rank, mesh.data_size, build.micro(job))
    corpus, held_out = build.open_corpora(job, environment["data"])
    loader = TrainLoader(corpus, job, share)
    if ranks.first:
        print("loading the model …", file=sys.stderr, flush=True)
    built = build.build_engine(job, Path(environment["model_folder"]), json.loads(run.deepspeed.read_text()), mesh)
    build.probe(built, job)
    total = total_steps(job, loader)
    # before a checkpoint is loaded: the reference is the model that training starts from
    needed = [(corpus, loader.seen(total)), *((one, np.arange(len(one.lengths))) for one in held_out.values())]
    reference = build.build_reference(job, built, environment, needed, mesh, stopping)
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
        seed=build.build_seed(job.seed, mesh.data_rank),
        measure=build.build_measure(built.scorer, environment["hardware"], ranks),
    )
    every = job.data.eval_every or max(1, math.ceil(total / 5))
    try:
        Trainer(parts, Plan(total, every, job.checkpoint.every), state).run(evaluate_first=evaluate_first)
    finally:
        for callback in callbacks:
            callback.close()
    save_result(run, job, built, environment, ranks)
    build.clear_disk(job, ranks)


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


def layout(strategy: StrategyConfig, processes: int) -> str:
    """What DeepSpeed's checkpoints depend on. Tried: stages 1 and 2 share a format, stage 0 is whole on each rank."""
    stage = {0: "0", 1: "1 or 2", 2: "1 or 2", 3: "3"}[int(strategy.zero)]
    ranks = "" if strategy.zero == 0 else f" on {processes} process(es)"
    axes = (axis for axis in strategy.axes if not axis.startswith("sequence"))  # to ZeRO those are data-parallel
    away = (one for one in strategy.away if one.startswith("optimizer"))
    return ", ".join((f"ZeRO {stage}", str(strategy.precision), *axes, *away)) + ranks


def main(folder: str) -> int:
    """Train, and say how it went."""
    return as_rank(folder, train, MEMORY_FIX)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
