"""Before any process group exists: a training job's inputs are tokenised, and described.

It loads no weights, and torch only where a tokenizer does.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from velocity.config.sections import AnyOptimizer, SourceConfig
from velocity.config.training import TrainingJob
from velocity.data.fingerprint import digest
from velocity.data.prepare import Preparation
from velocity.data.store import SequenceStore, open_cache
from velocity.distributed.ds_config import deepspeed_config, origins
from velocity.errors import UserError
from velocity.runs.claim import Manifest
from velocity.runs.model import check_vocabulary, model_content, model_hash


@dataclass(frozen=True)
class Inputs:
    """What a job reads: its stores, and one hash over model and data."""

    train: list[SequenceStore]
    eval: dict[str, list[SequenceStore]]
    model_folder: Path
    hash: str
    model_content: str | None = None  # of its configuration and all its weights, where a reference is to be kept

    def manifest(self, job: TrainingJob) -> Manifest:
        """What of them the run folder says."""
        stores = [*self.train, *(store for group in self.eval.values() for store in group)]
        processes = job.launch.processes
        assert isinstance(processes, int), "the planner resolves launch.processes"
        facts = {
            "model_folder": str(self.model_folder),
            "model_content": self.model_content,
            "data": {
                "train": [_entry(store) for store in self.train],
                "eval": {name: [_entry(store) for store in stores] for name, stores in self.eval.items()},
            },
        }
        rejected = [store.folder / "rejected.jsonl" for store in stores]
        config, why = deepspeed_config(job, processes), origins(job, processes)
        return Manifest(self.hash, facts, rejected, config, why)


def check_installed(optimizer: AnyOptimizer) -> None:
    """Nothing, or UserError where the optimizer's package is absent; it imports none."""
    if optimizer.kind in ("adamw_8bit", "lion") and importlib.util.find_spec("bitsandbytes") is None:
        what = f"optimizer.kind={optimizer.kind} needs bitsandbytes, which is not installed"
        raise UserError(what, "optimizer.kind", "pip install 'ProfoundVelocity[quantised]'")


def _entry(store: SequenceStore) -> dict[str, Any]:
    return {"store": str(store.folder), **store.stats}


def prepare_inputs(job: TrainingJob, model_folder: Path, report: Callable[[str], None]) -> Inputs:
    """Every source tokenised, or found in the cache; UserError for the first input that is wrong."""
    check_vocabulary(model_folder)
    open_cache(job.data.cache)
    preparation = Preparation(job, model_folder, report)
    train = _stores(preparation, "data.train", job.data.train)
    evals = {name: _stores(preparation, f"data.eval.{name}", sources) for name, sources in job.data.eval.items()}
    stores = [*train, *(store for group in evals.values() for store in group)]
    # Not the stores' keys: those change with Velocity's own code, which makes no other job.
    content = [preparation.tokenizer_hash, [store.stats["hashes"] for store in stores]]
    reference = model_content(model_folder, preparation.cache) if job.reference == "cached" else None
    return Inputs(train, evals, model_folder, digest([model_hash(model_folder), content]), reference)


def _stores(preparation: Preparation, key: str, sources: Sequence[SourceConfig]) -> list[SequenceStore]:
    """The sources' stores; a UserError that says no more than `data` names the key of the source."""
    stores = []
    for number, source in enumerate(sources):
        try:
            stores.append(preparation.source(source))
        except UserError as error:
            place = key if len(sources) == 1 else f"{key}.{number}"
            problems = [replace(one, where=place if one.where == "data" else one.where) for one in error.problems]
            raise UserError(problems) from None
    return stores
