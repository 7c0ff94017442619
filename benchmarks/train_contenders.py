"""The contenders of train_throughput.py: each trains one pass over the same sequences and says how long it took.

`python train_contenders.py NAME JOB.yaml`. All get the token ids and labels of Velocity's own store, so that all train
on the same tokens; all clip and step AdamW once a row of packed sequences, or once eight padded chats. One step warms
up, then the whole pass is timed.
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

IGNORED = -100
RATE = 1e-7  # so small that the losses of all contenders stay comparable


@dataclass(frozen=True)
class Pass:
    """One timed pass over the data; `loss` is the mean over its labels, in nats."""

    tokens: int
    trained: int
    steps: int
    seconds: float
    loss: float
    attention: str

    def describe(self) -> Result:
        """Plain values, with the peak memory of the process and of its GPU."""
        import torch

        device_bytes = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        return {**vars(self), "peak_bytes": peak_bytes(), "device_bytes": device_bytes}


def job_text(model: Path, data_file: Path, folder: Path, task: str = "sft", *, length: int = 1024) -> str:
    """The job file that all contenders take their data from, in rows of `length` tokens; Velocity trains it."""
    data = {"train": str(data_file), "sequence_length": length, "on_long_chat": "skip", "cache": str(folder / "cache")}
    job = {"task": task, "model": str(model), "output": str(folder / "run"), "data": data, "batch": {"rows": 1},
           "optimizer": {"learning_rate": RATE}, "duration": {"epochs": 1}}  # fmt: skip
    return json.dumps(job)  # JSON is YAML


def prepare(job_file: Path, overrides: tuple[str, ...] = ()) -> tuple[Any, Any, Any]:
    """The job without any `auto`, its inputs, and a loader of its rows."""
    from velocity.config.load import load_job
    from velocity.data.corpus import Corpus
    from velocity.data.loader import Share, TrainLoader
    from velocity.models.locate import locate
    from velocity.planner.hardware import detect
    from velocity.planner.machines import Cluster
    from velocity.planner.plan import resolve
    from velocity.training.setup import prepare_inputs

    loaded = load_job(job_file, overrides)
    folder = locate(loaded.job.model)
    job = resolve(loaded, Cluster(detect()), folder).job
    inputs = prepare_inputs(job, folder, lambda text: None)
    micro = job.batch.micro
    assert isinstance(micro, int), "the planner resolves batch.micro"
    return job, inputs, TrainLoader(Corpus(inputs.train, [1.0]), job, Share(micro=micro))


def velocity(job_file: Path, *, strategy: Mapping[str, Any]) -> Pass:
    """The real parts of a run: DeepSpeed's engine and the trainer's step, with the optimizer step in it."""
    from velocity.distributed import comm

    job, inputs, loader = prepare(job_file, tuple(f"strategy.{key}={value}" for key, value in strategy.items()))
    comm.start(comm.from_environment())
    lines: list[Mapping[str, float]] = []
    trainer, attention = _trainer(job, inputs, loader, lines)
    fresh, total = vars(trainer.state).copy(), trainer.plan.total
    trainer.step()
    lines.clear()
    vars(trainer.state).update(fresh)  # the pass begins at the first row
    started = time.perf_counter()
    for _ in range(total):
        trainer.step()
    seconds = time.perf_counter() - started
    comm.stop()
    tokens = sum(batch.tokens for step in range(total) for batch in loader.micro_batches(step))
    trained = int(sum(line["tokens"] for line in lines))
    loss = sum(line["loss"] * line["tokens"] for line in lines) / trained
    chosen = f"{attention}, {job.strategy.precision}, ZeRO {job.strategy.zero}, recompute {job.strategy.recompute}"
    return Pass(tokens, trained, total, seconds, loss, chosen)


def _trainer(job: Any, inputs: Any, loader: Any, lines: list[Mapping[str, float]]) -> tuple[Any, str]:
    """The trainer as `training/run.py` builds it, with one callback that collects its lines; and its attention."""
    from velocity.distributed import comm
    from velocity.distributed.ds_config import deepspeed_config
    from velocity.distributed.mesh import build_mesh
    from velocity.objectives.build import build_objective
    from velocity.training.build import build_engine
    from velocity.training.checkpoint import Checkpoints, TrainState
    from velocity.training.trainer import Parts, Plan, Trainer

    class Collector:
        def on_step(self, line: Mapping[str, float]) -> None:
            lines.append(line)

        def on_eval(self, step: int, results: Mapping[str, Mapping[str, float]]) -> None: ...

        def on_phase(self, what: str) -> None: ...

        def on_save(self, report: Any) -> None: ...

        def close(self) -> None: ...

    total = loader.steps(1)
    mesh = build_mesh(job.strategy, comm.from_environment())
    built = build_engine(job, inputs.model_folder, deepspeed_config(job, 1), mesh)
    parts = Parts(
        engine=built.engine, objective=build_objective(job), micro_batches=loader.micro_batches, eval_sets={},
        checkpoints=Checkpoints(Path(job.output), job.checkpoint, comm.from_environment()), callbacks=[Collector()],
        optimizer=job.optimizer, stopping=lambda: False, seed=lambda step: None, measure=lambda speed: {},
    )  # fmt: skip
    return Trainer(parts, Plan(total, total, total), TrainState()), _attention(built.scorer.model)


def bare(job_file: Path) -> Pass:
    """What one writes by hand: masked sdpa over the very rows that Velocity trains on, and PyTorch's AdamW."""
    import torch
    from transformers import AutoModelForCausalLM

    job, inputs, loader = prepare(job_file, ("strategy.precision=fp32", "strategy.zero=0"))
    model = AutoModelForCausalLM.from_pretrained(inputs.model_folder, dtype=torch.float32, attn_implementation="sdpa")
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=job.optimizer.weight_decay)
    steps = loader.steps(1)
    batches = [batch for step in range(steps) for batch in loader.micro_batches(step)]
    _bare_step(model, optimizer, batches[0])
    started = time.perf_counter()
    losses = [_bare_step(model, optimizer, batch) for batch in batches]
    seconds = time.perf_counter() - started
    trained = [batch.trained for batch in batches]
    loss = sum(each * count for each, count in zip(losses, trained, strict=True)) / sum(trained)
    return Pass(sum(batch.tokens for batch in batches), sum(trained), steps, seconds, loss, _attention(model))


def _bare_step(model: Any, optimizer: Any, batch: Any) -> float:
    """The mean loss of the row. Position ids that restart, and neither mask nor cache, isolate its sequences."""
    import torch
    import torch.nn.functional as F

    logits = model(input_ids=batch.input_ids_BS, position_ids=batch.position_ids_BS, use_cache=False).logits
    loss = F.cross_entropy(logits.flatten(0, 1), batch.labels_BS.flatten(), ignore_index=IGNORED)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return float(loss)


def trl(job_file: Path, *, packing: bool, rows: int = 8, recompute: bool = True, bf16: bool = False) -> Pass:
    """TRL's SFTTrainer; where a setting is not named here it has TRL's default, recomputation among them."""
    import torch
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    job, inputs, _ = prepare(job_file)
    config = SFTConfig(
        output_dir=job.output, per_device_train_batch_size=rows, packing=packing, max_length=job.data.sequence_length,
        bf16=bf16, use_cpu=not torch.cuda.is_available(), gradient_checkpointing=recompute, learning_rate=RATE,
        num_train_epochs=1, max_steps=1, logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
        model_init_kwargs={"dtype": "float32"},
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(inputs.model_folder)
    model, clock = str(inputs.model_folder), note_steps()
    data = _dataset(inputs.train)
    trainer = SFTTrainer(model, args=config, train_dataset=data, processing_class=tokenizer, callbacks=[clock])
    batches = _watch_batches(trainer)
    trainer.train()
    batches.clear()
    clock.times.clear()
    trainer.args.max_steps = -1
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    tokens, trained = (sum(column) for column in zip(*batches, strict=True))
    loss = sum(each * count for each, (_, count) in zip(losses, batches, strict=True)) / trained
    seconds = clock.times[-1] - clock.times[0]
    return Pass(tokens, trained, trainer.state.global_step, seconds, loss, _attention(trainer.model))


def note_steps() -> Any:
    """A callback of TRL's trainer that notes when each step begins and ends."""
    from transformers import TrainerCallback

    clock = TrainerCallback()
    clock.times = []

    def note(*arguments: Any, **named: Any) -> None:
        clock.times.append(time.perf_counter())

    clock.on_step_begin = clock.on_step_end = note
    return clock


def _watch_batches(trainer: Any) -> list[tuple[int, int]]:
    """A list that grows by (tokens without padding, labels) with each batch that the trainer's collator makes."""
    batches: list[tuple[int, int]] = []
    collate = trainer.data_collator

    def watched(examples: Any) -> Any:
        batch = collate(examples)
        tokens = batch["attention_mask"].sum() if "attention_mask" in batch else batch["input_ids"].numel()
        batches.append((int(tokens), int((batch["labels"][:, 1:] != IGNORED).sum())))
        return batch

    trainer.data_collator = watched
    return batches


def _dataset(stores: Any) -> Any:
    """The sequences as TRL's trainer takes them: token ids, and -100 for each that is not trained on."""
    import numpy as np
    from datasets import Dataset

    sequences = [store[i] for store in stores for i in range(len(store))]
    labels = [np.where(sequence.trained, sequence.ids, IGNORED).tolist() for sequence in sequences]
    return Dataset.from_dict({"input_ids": [sequence.ids.tolist() for sequence in sequences], "labels": labels})


def _attention(model: Any) -> str:
    return str(model.config._attn_implementation)


@dataclass(frozen=True)
class Contender:
    """Who takes part: what its line in the table says, how it trains, and whether in `velocity run`'s environment."""

    title: str
    train: Callable[[Path], Pass]
    our_environment: bool = False


def _of(train: Callable[..., Pass], **settings: Any) -> Callable[[Path], Pass]:
    return functools.partial(train, **settings)


CONTENDERS = {
    "trl-padded": Contender("TRL padded, its defaults, fp32", _of(trl, packing=False)),
    "trl-padded-env": Contender("TRL padded, our environment", _of(trl, packing=False), True),
    "trl-padded-kept": Contender(
        "TRL padded, our environment, no recomputation", _of(trl, packing=False, recompute=False), True
    ),
    "trl-packed": Contender("TRL packed, its defaults, fp32", _of(trl, packing=True)),
    "trl-packed-kept": Contender(
        "TRL packed, our environment, no recomputation, a row a step",
        _of(trl, packing=True, recompute=False, rows=1),
        True,
    ),
    "bare": Contender("bare loop, masked sdpa, fp32", bare),
    "bare-env": Contender("bare loop, our environment", bare, True),
    "velocity-fp32": Contender(
        "Velocity, fp32, ZeRO 0", _of(velocity, strategy={"precision": "fp32", "zero": 0}), True
    ),
    "trl-padded-bf16": Contender("TRL padded, its defaults, bf16", _of(trl, packing=False, bf16=True)),
    "trl-padded-bf16-kept": Contender(
        "TRL padded, bf16, no recomputation", _of(trl, packing=False, bf16=True, recompute=False)
    ),
    "trl-packed-bf16": Contender("TRL packed, its defaults, bf16", _of(trl, packing=True, bf16=True)),
    "velocity-auto": Contender("Velocity, strategy: auto", _of(velocity, strategy={}), True),
}


if __name__ == "__main__":
    print(json.dumps(CONTENDERS[sys.argv[1]].train(Path(sys.argv[2])).describe()))
