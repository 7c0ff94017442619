"""All that can be known of a job without loading weights: its data, its masks, its batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from velocity.config.job import Job, LoadedJob
from velocity.data.audit import Counts, audit, count, token_facts, without_bos
from velocity.data.encode import EncodingRules, TokenSequence
from velocity.data.loader import Corpus, Share, TrainLoader
from velocity.data.store import SequenceStore
from velocity.data.tokenizer import load_tokenizer
from velocity.training.setup import prepare_inputs
from velocity.training.total import total_steps

SAMPLE_TOKENS = 400


@dataclass(frozen=True)
class SetReport:
    """One named set: its counts, and what was left out of it."""

    counts: Counts
    records: int
    rejected: int
    cut: int


@dataclass(frozen=True)
class CheckReport:
    """What `velocity check` found. Its existence says that every invariant held."""

    job: LoadedJob
    sets: dict[str, SetReport]
    steps: int
    without_bos: int  # sequences
    sample: TokenSequence
    tokenizer: Any

    def describe(self) -> dict[str, Any]:
        """The report as plain values."""
        sets = {name: {**vars(found), "counts": vars(found.counts)} for name, found in self.sets.items()}
        reasons = {key: why for key, why in self.job.origins.items() if why.startswith("planner")}
        return {"sets": sets, "steps": self.steps, "without_bos": self.without_bos, "reasons": reasons}


def check_job(loaded: LoadedJob, model_folder: Path, report: Callable[[str], None]) -> CheckReport:
    """Tokenise (or find) every source, and audit every token; UserError or JobError where something is wrong."""
    job = loaded.job
    inputs = prepare_inputs(job, model_folder, report)
    tokenizer = load_tokenizer(model_folder, job.data.chat_template, remote_code=job.model.trust_remote_code)
    facts, rules = token_facts(tokenizer), EncodingRules.of(job)
    sets = {"train": inputs.train, **inputs.eval}
    for stores in sets.values():
        for store in stores:
            audit(store.blocks(), facts, rules, store.stats["files"])
    loader = TrainLoader(Corpus(inputs.train, [source.weight for source in job.data.train]), job, Share())
    reports = {name: _describe(stores, job) for name, stores in sets.items()}
    lacking = sum(without_bos(store.blocks(), facts) for stores in sets.values() for store in stores)
    return CheckReport(loaded, reports, total_steps(job, loader), lacking, inputs.train[0][0], tokenizer)


def _describe(stores: Sequence[SequenceStore], job: Job) -> SetReport:
    counts = count(stores, job.data.sequence_length, packing=job.data.packing)
    records, rejected, cut = (sum(store.stats[key] for store in stores) for key in ("records", "rejected", "cut"))
    return SetReport(counts, records, rejected, cut)


def print_check(found: CheckReport) -> None:
    """The report for a person, on standard output."""
    console = Console(highlight=False, soft_wrap=True)
    job = found.job.job
    console.print(f"{job.task}: data in tokens of {job.model.path}\n")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))  # as narrow as 80 columns
    for name in ("set", "records", "left out", "cut", "sequences", "tokens", "trained on", "rows", "filled"):
        table.add_column(name, justify="left" if name == "set" else "right", no_wrap=True)
    for name, report in found.sets.items():
        c = report.counts
        table.add_row(
            name, f"{report.records:,}", f"{report.rejected:,}", f"{report.cut:,}", f"{c.sequences:,}", f"{c.tokens:,}",
            f"{c.trained / c.tokens:.0%}", f"{c.rows:,}", f"{c.efficiency:.1%}",
        )  # fmt: skip
    console.print(table)
    for name, report in found.sets.items():
        parts = "  ".join(f"{p} %: {length}" for p, length in report.counts.percentiles.items())
        console.print(f"lengths of {name}:  {parts}")
    console.print(f"the run: {found.steps:,} steps")
    for key, why in found.job.origins.items():
        if why.startswith("planner: "):
            console.print(f"{key}: {why.removeprefix('planner: ')}")
    console.print("\nA sample; [green]«green»[/green] is trained on:")
    console.print(colour(found.sample, found.tokenizer))
    console.print("\nAll sequences hold: never two BOS tokens, turns end with a special token, no padding.")
    if found.without_bos:
        console.print(
            f"{found.without_bos:,} begin without the BOS token that the tokenizer puts before plain text: the chat "
            "template renders none, here as at inference."
        )


def colour(sequence: TokenSequence, tokenizer: Any) -> Text:
    """The sequence's text; «green» where it is trained on, dim elsewhere (a log has no colours, so both)."""
    text = Text()
    ids, trained = sequence.ids[:SAMPLE_TOKENS], sequence.trained[:SAMPLE_TOKENS]
    start = 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or trained[end] != trained[start]:
            part = tokenizer.decode(ids[start:end])
            text.append(*((f"«{part}»", "green") if trained[start] else (part, "dim")))
            start = end
    return text
