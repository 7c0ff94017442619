"""Before any process group exists: a training job's inputs are tokenised, and described.

It loads no weights, and torch only where a tokenizer does.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from velocity.config.sections import AnyOptimizer
from velocity.config.training import TrainingJob
from velocity.data.encode import EncodingRules
from velocity.data.fingerprint import digest
from velocity.data.inspection.findings import SHOWN, TRAIN, Audit
from velocity.data.inspection.run import Inspection
from velocity.data.prepare import ListedSource, Preparation
from velocity.data.store import SequenceStore, open_cache
from velocity.distributed.ds_config import deepspeed_config, origins
from velocity.errors import UserError
from velocity.runs.claim import Manifest
from velocity.runs.model import check_vocabulary, model_content, model_hash

Source = TypeVar("Source")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Inputs:
    """What a job reads: its stores, and one hash over model and data."""

    train: list[SequenceStore]
    eval: dict[str, list[SequenceStore]]
    model_folder: Path
    hash: str
    model_content: str | None = None  # of its configuration and all its weights, where a reference is to be kept
    sources: Mapping[str, Sequence[ListedSource]] = field(default_factory=dict)  # of all sets, training under its name
    audit: Audit | None = None

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
        audit = self.audit.plain(SHOWN) if self.audit is not None and self.audit.kinds else None
        return Manifest(self.hash, facts, rejected, config, why, audit)


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
    cache = open_cache(job.data.cache)
    preparation = Preparation(job, model_folder, report)
    keys = {TRAIN: "data.train", **{name: f"data.eval.{name}" for name in job.data.eval}}
    named = {TRAIN: job.data.train, **job.data.eval}
    listed = {name: _each(keys[name], lambda one: ListedSource.of(one, cache), named[name]) for name in named}
    audit = audit_sources(job, listed, report, job.data.audit.acts("drop", "error"))
    audit.refuse(job.data.audit)
    numbers = iter(range(len(listed[TRAIN])))
    train = _each(keys[TRAIN], lambda one: preparation.store(one, audit.left_out(next(numbers))), listed[TRAIN])
    evals = {name: _each(keys[name], lambda one: preparation.store(one, {}), listed[name]) for name in job.data.eval}
    stores = [*train, *(store for group in evals.values() for store in group)]
    # Not the stores' keys: those change with Velocity's own code, which makes no other job.
    content = [preparation.tokenizer_hash, [store.stats["hashes"] for store in stores]]
    without = [row[1:] for row in audit.rows_left_out()]  # sources, files and lines by number: the same on every node
    found = digest([model_hash(model_folder), content, *([without] if without else [])])
    reference = model_content(model_folder, preparation.cache) if job.reference == "cached" else None
    return Inputs(train, evals, model_folder, found, reference, listed, audit)


def audit_sources(
    job: TrainingJob,
    listed: Mapping[str, Sequence[ListedSource]],
    report: Callable[[str], None],
    kinds: Sequence[str],
) -> Audit:
    """What is wrong with the text of the data, of these kinds; and of others, what is known without looking."""
    cache, formats = Path(job.data.cache).expanduser(), EncodingRules.of(job).formats
    return Inspection(listed, formats, job.data.audit, job.data.processes, cache, report).audit(kinds)


def _each(key: str, make: Callable[[Source], Made], sources: Sequence[Source]) -> list[Made]:
    """What is made of each source; a UserError that says no more than `data` names the key of the source."""
    made = []
    for number, source in enumerate(sources):
        try:
            made.append(make(source))
        except UserError as error:
            place = key if len(sources) == 1 else f"{key}.{number}"
            problems = [replace(one, where=place if one.where == "data" else one.where) for one in error.problems]
            raise UserError(problems) from None
    return made
