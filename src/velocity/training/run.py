"""One rank of a training job: builds every part once from the run folder, trains, and leaves the tuned model.

`python -m velocity.training.run RUN_FOLDER` under torchrun.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from velocity import __version__
from velocity.config.job import Job
from velocity.config.resolved import read_resolved
from velocity.config.strategy import StrategyConfig
from velocity.data.loader import Corpus, Share, TrainLoader, eval_rows, split
from velocity.data.store import SequenceStore
from velocity.data.tokenizer import load_tokenizer, turn_ends
from velocity.distributed import comm, failure
from velocity.distributed.comm import Ranks
from velocity.distributed.deepspeed_engine import DeepSpeedEngine
from velocity.distributed.engine import TrainEngine
from velocity.errors import InterruptedRun, JobError, UserError, VelocityError, from_system
from velocity.models.export import model_card, save_model
from velocity.models.load import load_model
from velocity.models.probe import check_isolation, check_scores
from velocity.models.scorer import CausalScorer
from velocity.objectives.build import build_objective
from velocity.process import die_with_parent
from velocity.training.callbacks.build import build_callbacks
from velocity.training.callbacks.callback import Callback
from velocity.training.checkpoint import Checkpoints, TrainState
from velocity.training.evaluate import EvalSets
from velocity.training.metrics import memory_gib, model_flops_utilisation
from velocity.training.optimizer import build_optimizer
from velocity.training.run_folder import RunFolder
from velocity.training.total import total_steps
from velocity.training.trainer import Parts, Plan, Trainer


def train(run: RunFolder, ranks: Ranks, stopping: Callable[[], bool] = lambda: False) -> None:
    """The job of a run folder is done: metrics, checkpoints and model/ are there. `stopping` asks to save and end."""
    job = read_resolved(run.job)
    environment = json.loads(run.environment.read_text())
    check_device(ranks.device, environment["hardware"]["gpus"])
    share = Share(ranks.rank, ranks.world_size, _micro(job))
    loader = TrainLoader(
        _corpus(environment["data"]["train"], [source.weight for source in job.data.train]), job, share
    )
    if ranks.first:
        print("loading the model …", file=sys.stderr, flush=True)
    scorer, engine = build_engine(job, Path(environment["model_folder"]), json.loads(run.deepspeed.read_text()), ranks)
    _probe(engine, scorer, packing=job.data.packing)
    checkpoints = Checkpoints(
        run.checkpoints, job.checkpoint.keep, first=ranks.first, layout=layout(job.strategy, ranks.world_size)
    )
    total = total_steps(job, loader)
    state, evaluate_first = _resume(run, checkpoints, engine, total)
    callbacks = build_callbacks(run.path, job.model_dump(mode="json"), total, state.step) if ranks.first else []
    parts = Parts(
        engine=engine,
        objective=build_objective(job),
        micro_batches=loader.micro_batches,
        eval_sets=_eval_sets(job, environment["data"]["eval"], share),
        checkpoints=checkpoints,
        callbacks=callbacks,
        optimizer=job.optimizer,
        stopping=stopping,
        seed=lambda step: _seed(job.seed, step, ranks.rank),
        measure=_measure(scorer, environment["hardware"], ranks),
    )
    every = job.data.eval_every or max(1, math.ceil(total / 5))
    try:
        Trainer(parts, Plan(total, every, job.checkpoint.every), state).run(evaluate_first=evaluate_first)
    finally:
        _close(callbacks)
    _export(run, job, (scorer, engine), environment, ranks)


def _probe(engine: TrainEngine, scorer: CausalScorer, *, packing: bool) -> None:
    """Nothing, or UserError where the engine's scores are not the model's, or packed sequences see each other."""
    engine.train(False)  # dropout would move the scores that are compared
    check_scores(engine, scorer)
    if packing:
        check_isolation(engine, scorer.vocabulary)
    engine.train(True)


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


def check_device(device: torch.device, gpus: Sequence[Any]) -> None:
    """Nothing, or UserError where the plan was made for GPUs and torch has none, or the other way round."""
    if (device.type == "cuda") != bool(gpus):
        what = f"torch computes on {device.type}, the plan is for {len(gpus)} GPU(s)"
        raise UserError(what, "the installed torch", "install the torch that fits the driver: docs/guides/hardware.md")


def build_engine(
    job: Job, model_folder: Path, config: dict[str, Any], ranks: Ranks
) -> tuple[CausalScorer, DeepSpeedEngine]:
    """The model of a folder, and the engine that runs it; under ZeRO 3 it is partitioned while it loads."""
    strategy = job.strategy
    model = load_model(
        model_folder, job.model, strategy.precision,
        zero3=config if strategy.zero == 3 else None, recompute=strategy.recompute == "layers",
    )  # fmt: skip
    scorer = CausalScorer(model, _micro(job) * job.data.sequence_length)
    optimizer = build_optimizer(scorer, job.optimizer)
    return scorer, DeepSpeedEngine(scorer, optimizer, config, ranks, job.optimizer.gradient_clipping)


def _micro(job: Job) -> int:
    assert isinstance(job.batch.micro, int), "the planner resolves batch.micro"
    return job.batch.micro


def _corpus(entries: list[dict[str, Any]], weights: list[float]) -> Corpus:
    return Corpus([SequenceStore(Path(entry["store"])) for entry in entries], weights)


def _eval_sets(job: Job, entries: Mapping[str, list[dict[str, Any]]], share: Share) -> EvalSets:
    capacity = job.data.sequence_length if job.data.packing else None
    corpora = {name: _corpus(group, [1.0] * len(group)) for name, group in entries.items()}
    return {name: split(corpus, eval_rows(corpus, capacity), share) for name, corpus in corpora.items()}


def _seed(seed: int, step: int, rank: int) -> None:
    """Dropout depends on seed, step and rank alone, so a resumed run needs no generator state."""
    torch.manual_seed(seed * 1_000_003 + step * 1_009 + rank)


def _stop_flag() -> Callable[[], bool]:
    """True once this process was asked to stop; the trainer agrees on it with the other ranks."""
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: asked.append(received))
    return lambda: bool(asked)


def _measure(scorer: CausalScorer, hardware: Mapping[str, Any], ranks: Ranks) -> Callable[[float], dict[str, float]]:
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in scorer.parameters())
    gpu = hardware["gpus"][0][0] if hardware["gpus"] else ""

    def measure(tokens_per_second: float) -> dict[str, float]:
        used = model_flops_utilisation(parameters, tokens_per_second, gpu, ranks.world_size) if gpu else None
        return {"memory_gib": round(memory_gib(ranks.device), 3), **({} if used is None else {"mfu": used})}

    return measure


def _close(callbacks: list[Callback]) -> None:
    for callback in callbacks:
        callback.close()


def _export(
    run: RunFolder, job: Job, built: tuple[CausalScorer, DeepSpeedEngine], environment: Mapping[str, Any], ranks: Ranks
) -> None:
    scorer, engine = built
    weights = engine.weights()
    if ranks.first:
        folder = Path(environment["model_folder"])
        tokenizer = load_tokenizer(folder, job.data.chat_template, remote_code=job.model.trust_remote_code)
        lines = [line for line in run.lines() if "loss" in line]
        facts = {
            "base": job.model.path,
            "name": run.path.name,
            "version": __version__,
            "task": job.task,
            "steps": len(lines),
            "tokens": sum(line["tokens"] for line in lines),
            "sources": environment["data"]["train"],
            "evaluations": run.evaluations(),
            "settings": job.model_dump(mode="json", exclude={"data", "launch"}),
        }
        card = model_card(facts)
        save_model(scorer.model, weights, tokenizer, run.model, card, turn_ends=turn_ends(tokenizer))
        run.set_status("complete", steps=len(lines))
    comm.wait_for_all()


def main(folder: str) -> int:
    """Train, and say how it went: the exit status, and for a failure its cause in the run folder."""
    die_with_parent()
    warnings.filterwarnings("ignore")
    _quieten()
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
        fix = "strategy.zero: 3, strategy.recompute: layers, batch.micro: 1, or a shorter data.sequence_length"
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


def _quieten() -> None:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
