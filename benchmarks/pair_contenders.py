"""The contenders of pair_throughput.py: each trains DPO for one pass over the same pairs and says how long it took.

`python pair_contenders.py NAME JOB.yaml`. Every step sees eight pairs, clips and steps AdamW. One step warms up, then
the whole pass is timed; what a contender does once before training is timed by itself.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contest import Result, peak_bytes
from train_contenders import RATE, note_steps, prepare

BETA = 0.1
ROWS = 8  # pairs of a step: what TRL has by default


@dataclass(frozen=True)
class PairPass:
    """One timed pass; `loss` is DPO's mean, near log 2 at this learning rate. `once_seconds` come before the steps."""

    pairs: int
    steps: int
    seconds: float
    once_seconds: float
    loss: float
    how: str

    def describe(self) -> Result:
        """Plain values, with the peak memory of the process."""
        return {**vars(self), "peak_bytes": peak_bytes()}


def job_text(model: Path, pairs: Path, folder: Path) -> str:
    """The job file that Velocity trains, and the others take their pairs from."""
    data = {"train": str(pairs), "sequence_length": 512, "cache": str(folder / "cache")}
    job = {"task": "preference", "model": str(model), "output": str(folder / "run"), "data": data,
           "batch": {"rows": ROWS}, "optimizer": {"learning_rate": RATE}, "duration": {"epochs": 1},
           "preference": {"kind": "dpo", "beta": BETA}}  # fmt: skip
    return json.dumps(job)  # JSON is YAML


def velocity(job_file: Path, *, overrides: tuple[str, ...]) -> PairPass:
    """The real parts of a run: the reference's scores, DeepSpeed's engine and the trainer's step."""
    from velocity.distributed import comm
    from velocity.distributed.ds_config import deepspeed_config
    from velocity.distributed.mesh import build_mesh
    from velocity.objectives.build import build_objective
    from velocity.training.build import build_engine, build_reference
    from velocity.training.checkpoint import Checkpoints, TrainState
    from velocity.training.trainer import Parts, Plan, Trainer

    job, inputs, loader = prepare(job_file, overrides)
    ranks = comm.from_environment()
    comm.start(ranks)
    mesh = build_mesh(job.strategy, ranks)
    built = build_engine(job, inputs.model_folder, deepspeed_config(job, 1), mesh)
    environment = {"model_content": inputs.model_content, "model_folder": str(inputs.model_folder)}
    started = time.perf_counter()
    reference = build_reference(
        job, built, environment, [(loader.corpus, loader.seen(loader.steps(1)))], mesh, lambda: False
    )
    once = time.perf_counter() - started
    losses: list[float] = []
    parts = Parts(
        engine=built.engine, objective=build_objective(job, reference), micro_batches=loader.micro_batches,
        eval_sets={}, checkpoints=Checkpoints(Path(job.output), job.checkpoint, ranks), callbacks=[_Losses(losses)],
        optimizer=job.optimizer, stopping=lambda: False, seed=lambda step: None, measure=lambda speed: {},
    )  # fmt: skip
    total = loader.steps(1)
    trainer = Trainer(parts, Plan(total, total, total), TrainState())
    trainer.step()
    losses.clear()
    trainer.state = TrainState()  # the pass begins at the first pair
    started = time.perf_counter()
    for _ in range(total):
        trainer.step()
    seconds = time.perf_counter() - started
    comm.stop()
    tokens = sum(batch.tokens for step in range(total) for batch in loader.micro_batches(step))
    how = f"{tokens:,} tokens computed, {job.strategy.precision}, recompute {job.strategy.recompute}"
    return PairPass(len(loader.corpus.lengths), total, seconds, once, sum(losses) / total, how)


class _Losses:
    """A callback that keeps the loss of each step."""

    def __init__(self, losses: list[float]) -> None:
        self.losses = losses

    def on_step(self, line: Mapping[str, float]) -> None:
        self.losses.append(line["loss"])

    def on_eval(self, step: int, results: Mapping[str, Mapping[str, float]]) -> None: ...

    def on_phase(self, what: str) -> None: ...

    def on_save(self, report: Any) -> None: ...

    def close(self) -> None: ...


def trl(job_file: Path, *, precompute: bool, bf16: bool = False, recompute: bool = True) -> PairPass:
    """TRL's DPOTrainer; where a setting is not named here it has TRL's default."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    job = json.loads(job_file.read_text())
    rows = [json.loads(line) for line in Path(job["data"]["train"]).read_text().splitlines()]
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    pairs = Dataset.from_list([{name: _turn(role, row[name]) for name, role in roles.items()} for row in rows])
    config = DPOConfig(
        output_dir=job["output"], per_device_train_batch_size=ROWS, max_length=job["data"]["sequence_length"],
        beta=BETA, bf16=bf16, use_cpu=not torch.cuda.is_available(), gradient_checkpointing=recompute,
        learning_rate=RATE, num_train_epochs=1, max_steps=1, logging_steps=1, save_strategy="no", report_to="none",
        disable_tqdm=True, model_init_kwargs={"dtype": "float32"}, precompute_ref_log_probs=precompute,
    )  # fmt: skip
    clock = note_steps()
    started = time.perf_counter()
    trainer = DPOTrainer(
        job["model"], args=config, train_dataset=pairs, callbacks=[clock],
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
    )  # fmt: skip
    trainer.train()
    once = clock.times[0] - started  # with loading and tokenising
    clock.times.clear()
    trainer.args.max_steps = -1
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    seconds = clock.times[-1] - clock.times[0]
    how = f"gradient checkpointing {recompute}, reference {'computed before' if precompute else 'live'}"
    steps = trainer.state.global_step
    return PairPass(len(rows), steps, seconds, once, sum(losses[-steps:]) / steps, how)


def _turn(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


@dataclass(frozen=True)
class Contender:
    """Who takes part: what its line in the table says, how it trains, and whether in `velocity run`'s environment."""

    title: str
    train: Callable[[Path], PairPass]
    our_environment: bool = False


def _of(train: Callable[..., PairPass], **settings: Any) -> Callable[[Path], PairPass]:
    return functools.partial(train, **settings)


FP32 = ("strategy.precision=fp32", "strategy.zero=0")
CONTENDERS = {
    "trl": Contender("TRL, its defaults, fp32", _of(trl, precompute=False)),
    "trl-precomputed": Contender("TRL, reference computed before, fp32", _of(trl, precompute=True)),
    "trl-precomputed-kept": Contender(
        "TRL, reference computed before, no recomputation, our environment",
        _of(trl, precompute=True, recompute=False),
        True,
    ),
    "velocity-fp32": Contender("Velocity, fp32", _of(velocity, overrides=FP32), True),
    "velocity-unshared": Contender(
        "Velocity, fp32, prompts computed twice", _of(velocity, overrides=(*FP32, "model.attention=sdpa")), True
    ),
    "velocity-live": Contender(
        "Velocity, fp32, live reference", _of(velocity, overrides=(*FP32, "preference.reference=live")), True
    ),
    "velocity-auto": Contender("Velocity, strategy: auto", _of(velocity, overrides=()), True),
}


if __name__ == "__main__":
    print(json.dumps(CONTENDERS[sys.argv[1]].train(Path(sys.argv[2])).describe()))
