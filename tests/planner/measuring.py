"""The peak of live tensors of a job's training steps on this machine: what a plan's prediction is held against."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.making import job_data
from velocity.batch import IGNORED, Batch
from velocity.config.training import TrainingJob
from velocity.distributed.comm import Ranks
from velocity.distributed.ds_config import deepspeed_config
from velocity.distributed.mesh import build_mesh
from velocity.objectives.answers import cached_reference
from velocity.objectives.build import build_objective
from velocity.planner import memory
from velocity.planner.size import model_size
from velocity.training.build import build_engine

STEPS, MICRO_BATCHES = 2, 2  # the optimizer's state comes with the first step, gradients are added up in each
# small ones, or the defaults of 1 to 2 GB would be all there is to see
BUCKETS = {"zero_optimization": {"reduce_bucket_size": 200_000, "allgather_bucket_size": 200_000}}
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "fat": {"vocab_size": 4096, "hidden_size": 384, "intermediate_size": 1024, "num_attention_heads": 6,
            "num_key_value_heads": 2, "num_hidden_layers": 4},
    "wide": {"vocab_size": 16384, "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 2},
    "deep": {"vocab_size": 512, "hidden_size": 192, "intermediate_size": 512, "num_attention_heads": 6,
             "num_key_value_heads": 6, "num_hidden_layers": 8},
    "tied": {"vocab_size": 8192, "hidden_size": 256, "intermediate_size": 688, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 64, "hidden_size": 256, "intermediate_size": 688},
}  # fmt: skip


@dataclass(frozen=True)
class Configuration:
    """A job that is measured: a model's shape, the number of ranks, and what differs from `changed`'s job."""

    shape: str
    processes: int
    zero: int
    precision: str
    recompute: str = "none"
    more: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        more = [f"{key}={value}" for key, value in self.more.items()]
        return ", ".join([f"{self.shape} on {self.processes}", f"ZeRO {self.zero}", self.precision,
                          f"recompute {self.recompute}", *more])  # fmt: skip

    def changes(self) -> dict[str, Any]:
        """Dotted keys of the job."""
        return {
            "strategy.zero": self.zero, "strategy.precision": self.precision, "strategy.recompute": self.recompute,
            "launch.processes": self.processes, "deepspeed": BUCKETS if self.zero else {}, **self.more,
        }  # fmt: skip


CONFIGURATIONS = (
    Configuration("fat", 1, 0, "fp32"),
    Configuration("deep", 1, 0, "fp32", "layers"),
    Configuration("wide", 1, 0, "fp32"),
    Configuration("qwen3", 1, 1, "fp32"),
    Configuration("tied", 1, 1, "bf16"),
    Configuration("fat", 1, 3, "fp32", "layers"),
    Configuration("deep", 1, 0, "fp32", "none", {"batch.micro": 1, "data.sequence_length": 1024}),
    Configuration("fat", 1, 0, "fp32", "none", {"adapter": {"rank": 8}}),
    Configuration("fat", 2, 0, "fp32"),
    Configuration("fat", 2, 1, "bf16"),
    Configuration("tied", 2, 2, "bf16", "layers"),
    Configuration("fat", 2, 2, "fp32", "none", {"optimizer": {"kind": "sgd", "learning_rate": 1e-4}}),
    Configuration("fat", 2, 2, "fp32", "layers"),  # the hardest two: gradients of the head, larger than the bucket,
    Configuration("fat", 2, 3, "fp32", "layers"),  # are reduced by themselves, in copies that no formula here counts
    Configuration("tied", 2, 3, "fp32"),
    Configuration("fat", 2, 3, "bf16", "layers"),
    Configuration("tied", 2, 1, "bf16", "none", {"deepspeed": {}}),  # DeepSpeed's own buckets
    Configuration("fat", 2, 2, "bf16", "none", {"adapter": {"rank": 8}}),
)


class LiveStorages(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, until they are freed; `highest` is the most so far."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.bytes = self.highest = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.see(leaf)
        return result

    def see(self, tensor: torch.Tensor) -> None:
        """The tensor's storage counts from now on."""
        if tensor.device.type == "meta":
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.sizes:
            weakref.finalize(storage, self._free, key)
        self.bytes += size - self.sizes.get(key, 0)
        self.sizes[key] = size
        self.highest = max(self.highest, self.bytes)

    def _free(self, key: int) -> None:
        self.bytes -= self.sizes.pop(key, 0)


def tensors() -> list[torch.Tensor]:
    """All that Python knows of and that take memory."""
    found = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
    return [one for one in found if one.device.type != "meta"]


def write_model(folder: Path, shape: str) -> Path:
    """`folder` holds a random model of this shape."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings: dict[str, Any] = {
        "model_type": "llama", "vocab_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "tie_word_embeddings": False, **SHAPES[shape],
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings)).save_pretrained(str(folder / "model"))
    return folder


def make(folder: Path, changes: Mapping[str, Any]) -> TrainingJob:
    """The job that is measured; `changes` holds dotted keys."""
    data: dict[str, Any] = {**job_data(folder), "optimizer": {"learning_rate": 1e-4}, "launch": {}}
    data["strategy"] = {"tensor": 1, "pipeline": 1, "sequence": 1}
    data["strategy"]["offload"] = {"optimizer": "none", "parameters": "none"}
    data["batch"] = {"rows": 8, "micro": 2}
    for key, value in changes.items():
        *sections, name = key.split(".")
        section = data
        for inner in sections:
            section = section[inner]
        section[name] = value
    return TrainingJob.model_validate(data)


def full_rows(job: TrainingJob, vocabulary: int, seed: int) -> Batch:
    """A micro-batch whose rows are full and train on every token."""
    generator = torch.Generator().manual_seed(seed)
    length = job.row_tokens
    assert isinstance(job.batch.micro, int)
    ids = torch.randint(0, vocabulary, (job.batch.micro, length), generator=generator)
    labels = ids.roll(-1, 1)
    labels[:, -1] = IGNORED
    return Batch(ids, torch.arange(length).expand_as(ids).clone(), labels, ((length,),) * len(ids))


def peak_bytes(ranks: Ranks, folder: Path, changes: Mapping[str, Any]) -> int:
    """The most bytes that were alive in steps of the job, of what its model, engine and steps made."""
    job = make(folder, changes)
    gc.collect()
    before = {one.untyped_storage()._cdata for one in tensors()}
    live = LiveStorages()
    with live:
        mesh = build_mesh(job.strategy, ranks)
        built = build_engine(job, folder / "model", deepspeed_config(job, ranks.world_size), mesh)
    gc.collect()
    for one in tensors():  # what no operation made: weights from a file
        if one.untyped_storage()._cdata not in before:
            live.see(one)
    live.highest = live.bytes
    objective = build_objective(job, cached_reference)
    with live:
        for step in range(STEPS):
            batches = [full_rows(job, built.scorer.vocabulary, 10 * step + n) for n in range(MICRO_BATCHES)]
            units = ranks.world_size * sum(batch.trained for batch in batches)
            built.engine.learn(objective, batches, units, 1e-4)
    built.engine.engine.destroy()
    return live.highest


def predicted_bytes(folder: Path, configuration: Configuration) -> float:
    """The planner's peak without the allowance, which is for what no tensor holds."""
    job, size = make(folder, configuration.changes()), model_size(folder / "model")
    assert size is not None
    device = memory.peak(job, size, configuration.processes).device
    return device.total - device.allowance


def measured_bytes(run: Callable[..., Any], folder: Path, configuration: Configuration) -> int:
    """The highest of the ranks; `run` is a pool of the configuration's processes."""
    return max(run(peak_bytes, folder, configuration.changes()))
