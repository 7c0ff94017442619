"""All that can be known of an evaluate job without loading weights: its sets, their lengths, a row of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from velocity.config.evaluate import EvaluateJob
from velocity.config.job import LoadedJob
from velocity.data.tokenizer import load_tokenizer
from velocity.evaluation.setup import prepare_inputs
from velocity.evaluation.store import EvalStore

SAMPLE_TOKENS = 400


@dataclass(frozen=True)
class SetReport:
    """What `velocity check` found of a set. `sample` is its first row, up to where the model goes on or is scored."""

    kind: str
    rows: int
    rejected: int
    tokens: int
    longest: int
    options: int
    sample: str


@dataclass(frozen=True)
class EvaluateReport:
    """What `velocity check` found of all sets."""

    job: LoadedJob[EvaluateJob]
    sets: dict[str, SetReport]

    def describe(self) -> dict[str, Any]:
        """The report as plain values."""
        reasons = {key: why for key, why in self.job.origins.items() if why.startswith("planner")}
        return {"sets": {name: vars(found) for name, found in self.sets.items()}, "reasons": reasons}


def check_job(loaded: LoadedJob[EvaluateJob], folder: Path, report: Callable[[str], None]) -> EvaluateReport:
    """Tokenise (or find) every set; UserError for the first row that is wrong."""
    job = loaded.job
    sets = prepare_inputs(job, folder, report).sets
    tokenizer = load_tokenizer(folder, job.data.chat_template, remote_code=job.model.trust_remote_code)
    return EvaluateReport(loaded, {name: _describe(store, tokenizer) for name, store in sets.items()})


def _describe(store: EvalStore, tokenizer: Any) -> SetReport:
    first = store[0]
    shown = list(first.prompt)[-SAMPLE_TOKENS:] or first.options[0].ids[:SAMPLE_TOKENS]
    return SetReport(
        kind=store.stats["kind"],
        rows=len(store),
        rejected=store.stats["rejected"],
        tokens=int(np.sum(store.lengths, dtype=np.int64)),
        longest=int(store.lengths.max()),
        options=len(first.options),
        sample=str(tokenizer.decode(shown)),
    )


def print_check(found: EvaluateReport) -> None:
    """The report for a person, on standard output."""
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    job = found.job.job
    console.print(f"evaluate: sets in tokens of {job.model.path}\n")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("set", "kind", "rows", "left out", "tokens", "longest"):
        table.add_column(name, justify="left" if name in ("set", "kind") else "right", no_wrap=True)
    for name, one in found.sets.items():
        table.add_row(name, one.kind, f"{one.rows:,}", f"{one.rejected:,}", f"{one.tokens:,}", f"{one.longest:,}")
    console.print(table)
    if job.benchmarks is not None:
        console.print(f"benchmarks: {', '.join(job.benchmarks.tasks)}")
    for key, why in found.job.origins.items():
        if why.startswith("planner: "):
            console.print(f"{key}: {why.removeprefix('planner: ')}")
    for name, one in found.sets.items():
        console.print(f"\nThe first row of {name}, as the model sees it:\n{one.sample}")
