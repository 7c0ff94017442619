"""All that can be known of a generate job without loading weights: its prompts, their lengths, the plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from velocity.config.generate import GenerateJob
from velocity.config.job import LoadedJob
from velocity.data.tokenizer import load_tokenizer
from velocity.inference.ledger import Ledger
from velocity.inference.setup import prepare_inputs
from velocity.inference.text import Spoken

PERCENTILES = (50, 90, 99, 100)
SAMPLE_TOKENS = 400


@dataclass(frozen=True)
class PromptReport:
    """What `velocity check` found of prompts."""

    job: LoadedJob[GenerateJob]
    counts: dict[str, int]
    lengths: dict[int, int]  # tokens by percentile
    shared: int  # tokens that all prompts begin with
    shards: int
    sample: str
    ends: tuple[str, ...]

    def describe(self) -> dict[str, Any]:
        """The report as plain values."""
        reasons = {key: why for key, why in self.job.origins.items() if why.startswith("planner")}
        told = {"counts": self.counts, "lengths": self.lengths, "shared": self.shared, "shards": self.shards}
        return {**told, "sample": self.sample, "ends": self.ends, "reasons": reasons}


def check_job(loaded: LoadedJob[GenerateJob], folder: Path, report: Callable[[str], None]) -> PromptReport:
    """Tokenise (or find) every prompt; UserError for the first one that is wrong."""
    job = loaded.job
    prompts = prepare_inputs(job, folder, report).prompts
    tokenizer = load_tokenizer(folder, job.data.chat_template, remote_code=job.model.trust_remote_code)
    spoken = Spoken(tokenizer, job.generation, folder)
    return PromptReport(
        job=loaded,
        counts={name: prompts.stats[name] for name in ("records", "prompts", "tokens", "rejected", "too_long", "cut")},
        lengths={p: int(np.percentile(prompts.lengths, p, method="higher")) for p in PERCENTILES},
        shared=len(prompts.shared),
        shards=len(Ledger(Path(job.output), prompts.lengths).shards),
        sample=str(tokenizer.decode(prompts.ids(0)[-SAMPLE_TOKENS:])),
        ends=tuple(sorted(map(str, tokenizer.convert_ids_to_tokens(sorted(spoken.ends))))),
    )


def print_check(found: PromptReport) -> None:
    """The report for a person, on standard output."""
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    job, counts = found.job.job, found.counts
    console.print(f"generate: prompts in tokens of {job.model.path}\n")
    console.print(
        f"{counts['records']:,} rows, {counts['prompts']:,} prompts, {counts['tokens']:,} tokens; "
        f"{counts['rejected']:,} left out, {counts['cut']:,} cut"
    )
    console.print("lengths:  " + "  ".join(f"{p} %: {length:,}" for p, length in found.lengths.items()))
    if found.shared:
        console.print(f"all begin with the same {found.shared} tokens, which are computed once")
    console.print(
        f"the run: {found.shards:,} shards, at most {job.generation.max_new_tokens:,} new tokens a completion"
    )
    console.print(f"a completion ends with: {' '.join(found.ends)}  {' '.join(map(repr, job.generation.stop))}")
    for key, why in found.job.origins.items():
        if why.startswith("planner: "):
            console.print(f"{key}: {why.removeprefix('planner: ')}")
    console.print(f"\nA prompt, up to where the answer begins:\n{found.sample}")
