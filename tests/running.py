"""Runs a job's training steps in this process or on a pool's ranks, with the parts that `velocity run` builds."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch

from tests.making import chat, job_data, tiny_model_folder, write_job, write_jsonl
from velocity.checkpoints.pieces import part_of, pieces_of, write
from velocity.checkpoints.report import Report
from velocity.config.job import LoadedJob
from velocity.config.load import load_job
from velocity.config.training import TrainingJob
from velocity.data.corpus import Corpus
from velocity.data.loader import Share, TrainLoader
from velocity.data.prepare import Preparation
from velocity.distributed.comm import Ranks, wait_for_all
from velocity.distributed.deepspeed_engine import DeepSpeedEngine
from velocity.distributed.ds_config import deepspeed_config
from velocity.distributed.engine import TrainEngine
from velocity.distributed.mesh import build_mesh
from velocity.distributed.torch_engine import TorchEngine
from velocity.models.load import load_model
from velocity.models.scorer import CausalScorer
from velocity.objectives.answers import Reference, cached_reference
from velocity.objectives.build import build_objective
from velocity.planner.hardware import Hardware
from velocity.planner.machines import Cluster
from velocity.planner.plan import resolve
from velocity.runs.claim import claim
from velocity.runs.folder import RunFolder
from velocity.training.build import Built, build_engine, build_reference, probe
from velocity.training.checkpoint import Checkpoints, TrainState
from velocity.training.optimizer import build_optimizer
from velocity.training.setup import Inputs, prepare_inputs
from velocity.training.trainer import Parts, Plan, Trainer

TOLERANCE = 1e-5
MACHINE = Hardware(2, 8.0, cpu_bf16=False)
Steps: TypeAlias = list[tuple[float, float]]  # loss and gradient norm
WORDS = [
    "check",
    "the",
    "length",
    "of",
    "every",
    "input",
    "and",
    "copy",
    "no",
    "more",
    "bytes",
    "than",
    "the",
    "buffer",
    "holds",
]


def ragged_rows(count: int = 60) -> list[dict[str, Any]]:
    """Chats whose answers have 1 to 60 words: rows train on very different numbers of tokens."""
    return [
        chat("Why? " * (1 + i % 3), " ".join(WORDS[(i + k) % len(WORDS)] for k in range(1 + 7 * i * i % 40)))
        for i in range(count)
    ]


def prepare_folder(folder: Path, **model: Any) -> Path:
    """`folder` holds a tiny model and ragged chats, as `job_data` names them."""
    tiny_model_folder(folder / "model", **model)
    write_jsonl(folder / "train.jsonl", ragged_rows())
    return folder


def make_job(folder: Path, changes: Mapping[str, Any]) -> TrainingJob:
    """The job of a prepared folder; `changes` holds dotted keys."""
    data: dict[str, Any] = job_data(folder)
    data["strategy"] = {"zero": 0, "precision": "fp32", "recompute": "none", "tensor": 1, "pipeline": 1, "sequence": 1}
    data["strategy"]["offload"] = {"optimizer": "none", "parameters": "none"}
    data["batch"] = {"rows": 8, "micro": 2}
    data["launch"] = {"processes": 1}
    data["checkpoint"] = {"background": True}
    for key, value in changes.items():
        *sections, name = key.split(".")
        section = data
        for inner in sections:
            section = section[inner]
        section[name] = value
    return TrainingJob.model_validate(data)


def planned(folder: Path, output: Path, *overrides: str) -> LoadedJob[TrainingJob]:
    """The job of a prepared folder, without an `auto`; its file lies beside its output."""
    job = load_job(write_job(output.parent / "job.yaml", **{**job_data(folder), "output": str(output)}), overrides)
    return resolve(job, Cluster(MACHINE), folder / "model")


def inputs_of(job: LoadedJob[TrainingJob]) -> Inputs:
    """What the job reads, ready for the ranks."""
    return prepare_inputs(job.job, Path(job.job.model.path), lambda text: None)


def claimed(job: LoadedJob[TrainingJob], *, fresh: bool = False) -> RunFolder:
    """The run folder of a planned job, as `velocity run` leaves it to the ranks."""
    return claim(job, inputs_of(job).manifest(job.job), MACHINE.describe(), fresh=fresh)


class Recorder:
    """A callback that keeps every line."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []
        self.evaluations: list[Any] = []
        self.phases: list[str] = []
        self.saves: list[Report] = []

    def on_step(self, line: Mapping[str, float]) -> None:
        self.lines.append(dict(line))

    def on_eval(self, step: int, results: Any) -> None:
        self.evaluations.append((step, results))

    def on_phase(self, what: str) -> None:
        self.phases.append(what)

    def on_save(self, report: Report) -> None:
        self.saves.append(report)

    def close(self) -> None:
        pass


def loader_of(job: TrainingJob, ranks: Ranks) -> TrainLoader:
    """The job's own loader, for one rank."""
    preparation = Preparation(job, Path(job.model.path), lambda text: None)
    stores = [preparation.source(source) for source in job.data.train]
    assert isinstance(job.batch.micro, int)
    mesh = build_mesh(job.strategy, ranks)
    share = Share(mesh.data_rank, mesh.data_size, job.batch.micro)
    return TrainLoader(Corpus(stores, [source.weight for source in job.data.train]), job, share)


def plain_engine(job: TrainingJob) -> TorchEngine:
    """The reference engine of a job."""
    model = load_model(Path(job.model.path), job.model, "fp32")
    assert isinstance(job.batch.micro, int)
    scorer = CausalScorer(model, job.batch.micro * job.row_tokens)
    return TorchEngine(scorer, build_optimizer(scorer, job.optimizer), job.optimizer.gradient_clipping)


def deepspeed_engine(job: TrainingJob, ranks: Ranks) -> DeepSpeedEngine:
    """The engine that `velocity run` builds for a job without a pipeline."""
    engine = built_on(job, ranks).engine
    assert isinstance(engine, DeepSpeedEngine)
    return engine


def built_on(job: TrainingJob, ranks: Ranks) -> Built:
    """Model, scorer and engine as `velocity run` builds them."""
    mesh = build_mesh(job.strategy, ranks)
    return build_engine(job, Path(job.model.path), deepspeed_config(job, ranks.world_size), mesh)


def take_steps(job: TrainingJob, engine: TrainEngine, ranks: Ranks, steps: int = 6, start: int = 0) -> Steps:
    """(loss, gradient norm) of so many steps behind the first `start`, by the trainer itself."""
    recorder = Recorder()
    return _take(parts_of(job, engine, ranks, recorder), recorder, steps, start)


def save_engine(engine: TrainEngine, folder: Path, ranks: Ranks) -> None:
    """The folder holds the engine's weights and optimizer state, on every rank's return."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, flats in enumerate(engine.flats()):
        write(folder / part_of(ranks.rank, number), pieces_of(flats))
    wait_for_all()


def _take(parts: Parts, recorder: Recorder, steps: int, start: int = 0) -> Steps:
    trainer = Trainer(parts, Plan(start + steps, eval_every=10**9, checkpoint_every=10**9), TrainState(start))
    for _ in range(steps):
        trainer.step()
    return [(line["loss"], line["grad_norm"]) for line in recorder.lines]


def steps_on(ranks: Ranks, folder: Path, changes: Mapping[str, Any]) -> Steps:
    """The first steps of the job of a prepared folder, on one of a pool's ranks; in plain PyTorch without a pool."""
    job = make_job(folder, changes)
    if not torch.distributed.is_initialized():
        return take_steps(job, plain_engine(job), ranks)
    engine = built_on(job, ranks).engine
    steps = take_steps(job, engine, ranks)
    engine.engine.destroy()
    return steps


def probed_steps_on(ranks: Ranks, folder: Path, changes: Mapping[str, Any]) -> Steps:
    """The same of an engine that passed the probe, on one of a pool's ranks."""
    job = make_job(folder, changes)
    built = built_on(job, ranks)
    probe(built, job)
    steps = take_steps(job, built.engine, ranks)
    built.engine.engine.destroy()
    return steps


def preference_steps(ranks: Ranks, folder: Path, changes: Mapping[str, Any]) -> Steps:
    """The same of a preference job, its reference scored anew; in plain PyTorch where there is no pool."""
    job, pooled = make_job(folder, changes), torch.distributed.is_initialized()
    engine: Any = None if pooled else plain_engine(job)
    built = built_on(job, ranks) if pooled else Built(engine.scorer, engine, None)
    loader, recorder, mesh = loader_of(job, ranks), Recorder(), build_mesh(job.strategy, ranks)
    environment = {"model_content": uuid.uuid4().hex, "model_folder": job.model.path}
    reference = build_reference(job, built, environment, [(loader.corpus, loader.seen(6))], mesh, lambda: False)
    steps = _take(parts_of(job, built.engine, ranks, recorder, loader, reference), recorder, 6)
    if pooled:
        built.engine.engine.destroy()
    return steps


def assert_same(steps: Steps, reference: Steps) -> None:
    """Losses and gradient norms are equal to 1e-5."""
    for number, (one, other) in enumerate(zip(steps, reference, strict=True)):
        assert one[0] == pytest.approx(other[0], rel=TOLERANCE, abs=TOLERANCE), f"loss of step {number}"
        assert one[1] == pytest.approx(other[1], rel=TOLERANCE, abs=TOLERANCE), f"gradient norm of step {number}"


def parts_of(  # noqa: PLR0913 - what a trainer is made of
    job: TrainingJob,
    engine: TrainEngine,
    ranks: Ranks,
    recorder: Recorder,
    loader: TrainLoader | None = None,
    reference: Reference = cached_reference,
) -> Parts:
    """What the trainer is made of, with a recorder for a callback."""
    return Parts(
        engine=engine,
        objective=build_objective(job, reference),
        micro_batches=(loader or loader_of(job, ranks)).micro_batches,
        eval_sets={},
        checkpoints=Checkpoints(Path(job.output) / "checkpoints", job.checkpoint, ranks),
        callbacks=[recorder],
        optimizer=job.optimizer,
        stopping=lambda: False,
        seed=lambda step: None,
        measure=lambda rate: {},
    )
