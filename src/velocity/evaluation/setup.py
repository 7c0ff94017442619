"""Before any process group exists: an evaluate job's sets are tokenised, and described. It loads no weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from velocity.config.evaluate import AnswersConfig, EvaluateJob
from velocity.data.fingerprint import content_hash, digest
from velocity.data.store import open_cache
from velocity.data.tokenizer import tokenizer_hash
from velocity.distributed.ds_config import inference_config
from velocity.errors import UserError
from velocity.evaluation.harness import load_tasks
from velocity.evaluation.prepare import Preparation
from velocity.evaluation.scores.build import build_scores
from velocity.evaluation.store import EvalStore
from velocity.runs.claim import Manifest
from velocity.runs.model import check_vocabulary, context_length, model_hash


@dataclass(frozen=True)
class Inputs:
    """What a job reads: its sets, and one hash over model and data."""

    sets: Mapping[str, EvalStore]
    model_folder: Path
    hash: str

    def manifest(self, job: EvaluateJob) -> Manifest:
        """What of them the run folder says."""
        told = {name: {"store": str(store.folder), **_without(store.stats)} for name, store in self.sets.items()}
        facts = {"model_folder": str(self.model_folder), "sets": told}
        processes = job.launch.processes
        assert isinstance(processes, int), "the planner resolves launch.processes"
        rejected = [store.folder / "rejected.jsonl" for store in self.sets.values()]
        return Manifest(self.hash, facts, rejected, inference_config(job, processes))


def _without(stats: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in stats.items() if name != "shared"}


def check_installed(job: EvaluateJob) -> None:
    """Nothing, or UserError where a package that the job needs is absent; it imports none of them."""
    needed = {"benchmarks": ("lm_eval", job.benchmarks is not None),
              "retrieval": ("bm25s", job.retrieval is not None and job.retrieval.method == "bm25")}  # fmt: skip
    for key, (package, wanted) in needed.items():
        if wanted and importlib.util.find_spec(package) is None:
            raise UserError(
                f"{key} needs {package}, which is not installed", key, "pip install 'ProfoundVelocity[evaluation]'"
            )


def prepare_inputs(job: EvaluateJob, model_folder: Path, report: Callable[[str], None]) -> Inputs:
    """The job's sets tokenised, or found in the cache; UserError for the first input that is wrong."""
    check_vocabulary(model_folder)
    open_cache(job.data.cache)
    _check_context(job, model_folder)
    code = _code_of(job, Path(job.data.cache).expanduser())
    preparation = Preparation(job, model_folder, report)
    sets = {name: preparation.items(name) for name in job.data.eval}
    words = tokenizer_hash(model_folder, job.data.chat_template, preparation.cache)
    hashes = {name: store.stats["hashes"] for name, store in sets.items()}
    content = [words, preparation.retrieval_key(), hashes, code]
    return Inputs(sets, model_folder, digest([model_hash(model_folder), content]))


def _code_of(job: EvaluateJob, cache: Path) -> list[str]:
    """Hashes of the user's own functions and tasks, which decide figures.

    UserError, before a model loads, where one is wrong. The benchmarks' data sets are fetched here where they are not
    on this machine: once, and not by every rank.
    """
    files: list[Path] = []
    for source in job.data.eval.values():
        if isinstance(source, AnswersConfig):
            build_scores(source.metrics, source.pattern, source.function)
            if source.function is not None:
                files.append(Path(source.function.rpartition(":")[0]).expanduser())
    if job.benchmarks is not None:
        for name in job.benchmarks.tasks:
            load_tasks(name, job.benchmarks)
        if job.benchmarks.folder is not None:
            folder = Path(job.benchmarks.folder).expanduser()
            files += sorted(path for path in folder.rglob("*") if path.is_file())
    return [content_hash(file, cache) for file in files]


def _check_context(job: EvaluateJob, model_folder: Path) -> None:
    """Nothing, or UserError where the model's context does not hold a row of the job."""
    context, length, new = context_length(model_folder), job.data.sequence_length, job.generation.max_new_tokens
    if context is None:
        return
    if length > context:
        what = f"data.sequence_length={length} exceeds the model's context of {context} tokens"
        raise UserError(what, "data.sequence_length", f"use at most {context}")
    if job.answers and length + new > context:
        what = f"data.sequence_length={length} with {new} new tokens exceeds the model's context of {context} tokens"
        raise UserError(what, "data.sequence_length", f"use at most {context - new}")
