"""Before any process group exists: a generate job's prompts are tokenised, and described. It loads no weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from velocity.config.generate import GenerateJob
from velocity.data.fingerprint import digest
from velocity.data.prompts import PromptStore, prepare_prompts
from velocity.data.store import open_cache
from velocity.data.tokenizer import load_tokenizer, tokenizer_hash
from velocity.distributed.ds_config import inference_config
from velocity.errors import UserError
from velocity.inference.text import Spoken
from velocity.runs.claim import Manifest
from velocity.runs.model import check_vocabulary, context_length, model_hash


@dataclass(frozen=True)
class Inputs:
    """What a job reads: its prompts, and one hash over model and data."""

    prompts: PromptStore
    model_folder: Path
    hash: str

    def manifest(self, job: GenerateJob) -> Manifest:
        """What of them the run folder says."""
        told = {name: value for name, value in self.prompts.stats.items() if name != "shared"}
        facts = {"model_folder": str(self.model_folder), "prompts": {"store": str(self.prompts.folder), **told}}
        processes = job.launch.processes
        assert isinstance(processes, int), "the planner resolves launch.processes"
        return Manifest(self.hash, facts, [self.prompts.folder / "rejected.jsonl"], inference_config(job, processes))


def prepare_inputs(job: GenerateJob, model_folder: Path, report: Callable[[str], None]) -> Inputs:
    """The job's prompts tokenised, or found in the cache; UserError for the first one that is wrong."""
    check_vocabulary(model_folder)
    cache = open_cache(job.data.cache)
    if job.generation.end_tokens:
        template, remote_code = job.data.chat_template, job.model.trust_remote_code
        Spoken(load_tokenizer(model_folder, template, remote_code=remote_code), job.generation, model_folder)
    prompts = prepare_prompts(job, model_folder, prompt_limit(job, model_folder), report)
    words = tokenizer_hash(model_folder, job.data.chat_template, cache)
    return Inputs(prompts, model_folder, digest([model_hash(model_folder), words, prompts.stats["hashes"]]))


def prompt_limit(job: GenerateJob, model_folder: Path) -> int | None:
    """The most tokens of a prompt; UserError where the model's context does not hold what the job asks for."""
    context, new = context_length(model_folder), job.generation.max_new_tokens
    asked = job.data.max_prompt_tokens
    if context is None:
        return asked
    if new >= context:
        what = f"generation.max_new_tokens={new} fills the model's context of {context} tokens"
        raise UserError(what, "generation.max_new_tokens", f"leave room for prompts: at most {context - 1}")
    if asked is not None and asked + new > context:
        what = f"data.max_prompt_tokens={asked} with {new} new tokens exceeds the model's context of {context} tokens"
        raise UserError(what, "data.max_prompt_tokens", f"use at most {context - new}")
    return asked or context - new
