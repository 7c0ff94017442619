"""The parts of a training job that depend on its model and its data, each built once from the run folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from velocity.batch import Batch
from velocity.config.training import TrainingJob
from velocity.data.corpus import Corpus
from velocity.data.layout import Pairs, build_layout
from velocity.data.loader import Share, TrainLoader, eval_rows, split
from velocity.data.pack import Indices
from velocity.data.store import SequenceStore
from velocity.distributed import comm
from velocity.distributed.comm import Ranks
from velocity.distributed.deepspeed_engine import DeepSpeedEngine
from velocity.distributed.ds_config import deepspeed_config, fitted, swap_folder
from velocity.distributed.engine import TrainEngine
from velocity.distributed.frozen_engine import FrozenEngine
from velocity.distributed.memory import memory_gib
from velocity.distributed.mesh import Mesh
from velocity.distributed.pipeline_engine import PipelineEngine
from velocity.distributed.tensor import split_plan
from velocity.distributed.ulysses import SequenceRanks
from velocity.inference.streaming import prepare_disk, shapes_of
from velocity.models.adapters import adapter_off, add_adapter, weights_read
from velocity.models.layers import compile_layers, gather_experts_whole, recompute_layers
from velocity.models.load import DTYPES, load_model, partitioned
from velocity.models.probe import check_isolation, check_scores, check_sharing, check_split, own_scores
from velocity.models.scorer import CausalScorer
from velocity.models.stages import Stage, check_layers
from velocity.objectives.answers import LiveReference, Reference, cached_reference
from velocity.objectives.objective import Policy
from velocity.training.checkpoint import Replay
from velocity.training.evaluate import EvalSets
from velocity.training.metrics import model_flops_utilisation
from velocity.training.optimizer import build_optimizer
from velocity.training.reference import ReferenceScorer, ScoreCache


@dataclass(frozen=True)
class Built:
    """A model, the scorer around it and the engine that runs it. `adapter` is peft's model, where one was put in.

    `unsplit_S` holds the probe's scores of a model that is split, by matrices or into stages, from before it was.
    """

    scorer: CausalScorer
    engine: DeepSpeedEngine | PipelineEngine
    adapter: Any
    unsplit_S: torch.Tensor | None = None


def build_engine(job: TrainingJob, model_folder: Path, config: dict[str, Any], mesh: Mesh) -> Built:
    """The model of a folder, and the engine that runs it; under ZeRO 3 it is partitioned while it loads.

    Not so where its matrices are split: DeepSpeed splits whole ones.
    """
    strategy, bits = job.strategy, job.adapter.bits if job.adapter else None
    split = int(strategy.tensor) > 1
    config = _fitted(job, model_folder, config, mesh)
    zero3 = config if strategy.zero == 3 and not split else None
    model = load_model(model_folder, job.model, strategy.precision, zero3=zero3, bits=bits)
    base = str(model_folder.absolute()) if Path(job.model.path).expanduser().is_dir() else job.model.path
    with partitioned(zero3):
        adapter = add_adapter(model, job.adapter, (base, job.model.revision), job.seed) if job.adapter else None
    if zero3 is not None and adapter is not None:
        comm.gather_for(weights_read(model))
    if strategy.zero == 3:
        gather_experts_whole(model)
    if strategy.recompute == "layers":
        recompute_layers(model, on_cpu=strategy.offload.activations == "cpu")
    if strategy.compile == "layers":
        compile_layers(model)
    scorer = CausalScorer(model, micro(job) * job.row_tokens, _spread(job, mesh))
    if int(strategy.pipeline) > 1:
        return _staged(job, scorer, config, mesh)
    unsplit_S = _before_split(scorer) if split else None
    optimizer = build_optimizer(scorer, job.optimizer, strategy.offload)
    engine = DeepSpeedEngine(scorer, optimizer, config, mesh, job.optimizer.gradient_clipping)
    return Built(scorer, engine, adapter, unsplit_S)


def _fitted(job: TrainingJob, model_folder: Path, config: dict[str, Any], mesh: Mesh) -> dict[str, Any]:
    """The configuration with the sizes of what waits elsewhere; a disk that is used is ready."""
    offload, ranks = job.strategy.offload, mesh.ranks
    if "nvme" in offload.places:
        prepare_disk(Path(swap_folder(job)), ranks)
        comm.wait_for_all()
    if not {"cpu", "nvme"} & set(offload.places):
        return config
    dtype = DTYPES[str(job.strategy.precision)]
    shapes = shapes_of(model_folder, dtype, ranks.world_size, remote_code=job.model.trust_remote_code)
    return fitted(config, shapes, ranks.world_size, gpu=ranks.device.type == "cuda")


def clear_disk(job: TrainingJob, ranks: Ranks) -> None:
    """Nothing of the run waits on a disk of this node any more."""
    if ranks.local_rank == 0 and "nvme" in job.strategy.offload.places:
        shutil.rmtree(swap_folder(job), ignore_errors=True)


def _before_split(scorer: CausalScorer) -> torch.Tensor:
    """The probe's scores of the whole model, which knows from now on how it is to be split."""
    cast(Any, scorer)._tp_plan = split_plan(scorer.model)  # where DeepSpeed looks for it
    return _whole_scores(scorer)


def _staged(job: TrainingJob, scorer: CausalScorer, config: dict[str, Any], mesh: Mesh) -> Built:
    """Our stage of the model, and the engine that runs it; the scorer keeps the shapes of all."""
    check_layers(scorer.model)
    unsplit_S = _whole_scores(scorer)
    stage = Stage(scorer, mesh.inner_size, mesh.inner_rank)
    engine = PipelineEngine(stage, build_optimizer(stage, job.optimizer), config, mesh)
    return Built(scorer, engine, None, unsplit_S)


def _whole_scores(scorer: CausalScorer) -> torch.Tensor:
    """The probe's scores of a model that is still whole."""
    scorer.eval()
    unsplit_S = own_scores(scorer)
    scorer.train()
    return unsplit_S


def build_reference(  # noqa: PLR0913 - all that a reference is made from
    job: TrainingJob,
    built: Built,
    environment: Mapping[str, Any],
    needed: Sequence[tuple[Corpus, Indices]],
    mesh: Mesh,
    stopping: Callable[[], bool],
) -> Reference:
    """Where the objective finds the reference's scores: computed now for what is needed, or asked for at each step."""
    if job.reference == "live":
        return LiveReference(_live(job, built, Path(environment["model_folder"]), mesh))
    if job.reference == "cached":
        facts = {"model": environment["model_content"], "precision": str(job.strategy.precision),
                 "attention": job.model.attention, "bits": str(job.adapter and job.adapter.bits)}  # fmt: skip
        scorer = ReferenceScorer(
            policy=built.engine if built.adapter is None else WithoutAdapter(built),
            engine=built.engine,
            layout=build_layout(job),
            share=Share(mesh.data_rank, mesh.data_size, micro(job)),
            capacity=job.row_tokens if job.data.packing else None,
            cache=ScoreCache(Path(job.data.cache).expanduser() / "reference", facts, mesh.ranks.first),
            stopping=stopping,
        )
        for corpus, indices in needed:
            scorer.add_to(corpus, indices)
    return cached_reference


def _live(job: TrainingJob, built: Built, model_folder: Path, mesh: Mesh) -> Policy:
    """The model that training starts from: the same one with its adapter off, or a second, frozen one."""
    if built.adapter is not None:
        return WithoutAdapter(built)
    # spread over all ranks by ZeRO, which serves those that share batches as it serves those that do not
    offload = job.strategy.offload.model_copy(update={"optimizer": "none", "ratio": 1.0, "overlap": "none"})
    changes = {"zero": 3, "tensor": 1, "offload": offload, "states": "fp32", "compile": "none"}
    frozen = job.model_copy(update={"strategy": job.strategy.model_copy(update=changes)})
    config = deepspeed_config(frozen, mesh.ranks.world_size)
    model = load_model(model_folder, job.model, job.strategy.precision, zero3=config)
    scorer = CausalScorer(model, micro(job) * job.row_tokens, _spread(job, mesh))
    return FrozenEngine(scorer, config, mesh.ranks)


class WithoutAdapter:
    """The policy of an engine whose model has its adapter switched off, and no dropout."""

    def __init__(self, built: Built) -> None:
        self.built = built

    @torch.no_grad()
    def __call__(self, batch: Batch) -> torch.Tensor:
        """Return logps_BS: the log-probability of each label."""
        training = self.built.scorer.training
        self.built.engine.train(False)
        with adapter_off(self.built.scorer):
            logps_BS = self.built.engine(batch)
        self.built.engine.train(training)
        return logps_BS


def _spread(job: TrainingJob, mesh: Mesh) -> SequenceRanks | None:
    """Those who share each row's tokens with us."""
    return SequenceRanks(mesh) if int(job.strategy.sequence) > 1 else None


def micro(job: TrainingJob) -> int:
    """Rows that a rank computes at once."""
    assert isinstance(job.batch.micro, int), "the planner resolves batch.micro"
    return job.batch.micro


def open_corpora(job: TrainingJob, data: Mapping[str, Any]) -> tuple[Corpus, dict[str, Corpus]]:
    """The training set and the evaluation sets by name; `data` is the manifest of environment.json."""
    held_out = {name: _corpus(entries, [1.0] * len(entries)) for name, entries in data["eval"].items()}
    return _corpus(data["train"], [source.weight for source in job.data.train]), held_out


def _corpus(entries: list[dict[str, Any]], weights: list[float]) -> Corpus:
    return Corpus([SequenceStore(Path(entry["store"])) for entry in entries], weights)


def build_eval_sets(job: TrainingJob, corpora: Mapping[str, Corpus], share: Share) -> EvalSets:
    """Our share of every evaluation set."""
    capacity, layout = job.row_tokens if job.data.packing else None, build_layout(job)
    return {name: split(corpus, eval_rows(corpus, layout, capacity), share, layout) for name, corpus in corpora.items()}


def probe(built: Built, job: TrainingJob) -> None:
    """Nothing, or UserError where the scores are not the model's, or sequences see what they should not."""
    built.engine.train(False)  # dropout would move the scores that are compared
    staged = isinstance(built.engine, PipelineEngine)  # then no rank has the model's own forward
    if not staged:
        check_scores(built.engine, built.scorer)
    if built.unsplit_S is not None:
        axis = "pipeline" if staged else "tensor"
        check_split(built.engine, built.scorer.vocabulary, built.unsplit_S, axis)
    if job.data.packing:
        check_isolation(built.engine, built.scorer.vocabulary)
    layout = build_layout(job)
    if isinstance(layout, Pairs) and layout.share_prompt:
        check_sharing(built.engine, built.scorer.vocabulary)
    built.engine.train(True)


def build_seed(seed: int, rank: int) -> Callable[[int], None]:
    """Dropout depends on seed, step and rank alone, so a resumed run needs no generator state."""

    def start(step: int) -> None:
        torch.manual_seed(seed * 1_000_003 + step * 1_009 + rank)

    return start


# of the loss after loading, in nats a token, or as a share of it: other sizes sum in another order
HELD_TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 2e-2}


def build_replay(job: TrainingJob, loader: TrainLoader, engine: TrainEngine) -> Replay:
    """The mean loss of one row of the first global batch, its shortest, which every rank scores."""
    held = loader.layout.collate(loader.corpus, loader.global_batch(0)[-1:])

    @torch.no_grad()
    def loss() -> float:
        engine.train(False)
        logps_BS = engine(held)
        engine.train(True)
        return -float(logps_BS.double().sum()) / max(held.trained, 1)

    return Replay(loss, HELD_TOLERANCE[str(job.strategy.precision)])


def build_measure(
    scorer: CausalScorer, hardware: Mapping[str, Any], ranks: Ranks
) -> Callable[[float], dict[str, float]]:
    """What is reported of the machine at a step, from its tokens a second."""
    counts = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in scorer.parameters()]
    parameters, trained = sum(count for count, _ in counts), sum(count for count, learns in counts if learns)
    gpu = hardware["gpus"][0][0] if hardware["gpus"] else ""

    def measure(tokens_per_second: float) -> dict[str, float]:
        used = model_flops_utilisation(parameters, trained, tokens_per_second, gpu, ranks.world_size) if gpu else None
        return {"memory_gib": round(memory_gib(ranks.device), 3), **({} if used is None else {"mfu": used})}

    return measure
