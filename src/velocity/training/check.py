"""All that can be known of a job without loading weights: its data, its masks, its batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from velocity.config.job import LoadedJob
from velocity.config.training import TrainingJob
from velocity.data.audit import Counts, audit, count, token_facts, without_bos
from velocity.data.corpus import Corpus
from velocity.data.encode import EncodingRules, TokenSequence
from velocity.data.inspection.findings import Audit
from velocity.data.inspection.lines import lines_of
from velocity.data.layout import build_layout
from velocity.data.loader import Share, TrainLoader, pack_rows
from velocity.data.pack import Indices
from velocity.data.store import SequenceStore
from velocity.data.tokenizer import load_tokenizer
from velocity.objectives.build import build_objective
from velocity.training.setup import audit_sources, prepare_inputs
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

    job: LoadedJob[TrainingJob]
    sets: dict[str, SetReport]
    steps: int
    batch: int  # what a step sees, in `unit`
    unit: str  # rows, pairs or answers
    without_bos: int  # sequences
    sample: TokenSequence
    tokenizer: Any
    audit: Audit

    def describe(self) -> dict[str, Any]:
        """The report as plain values."""
        sets = {name: {**vars(found), "counts": vars(found.counts)} for name, found in self.sets.items()}
        reasons = {key: why for key, why in self.job.origins.items() if why.startswith("planner")}
        run = {"steps": self.steps, "batch": self.batch, "unit": self.unit}
        found = {"without_bos": self.without_bos, "audit": self.audit.plain(), "reasons": reasons}
        return {"sets": sets, **run, **found}


def check_job(loaded: LoadedJob[TrainingJob], model_folder: Path, report: Callable[[str], None]) -> CheckReport:
    """Tokenise (or find) every source, audit every token and every text; UserError or JobError for what is wrong."""
    job = loaded.job
    inputs = prepare_inputs(job, model_folder, report)
    found = audit_sources(job, inputs.sources, report, job.data.audit.acts("report", "drop", "error"))
    tokenizer = load_tokenizer(model_folder, job.data.chat_template, remote_code=job.model.trust_remote_code)
    facts, rules = token_facts(tokenizer), EncodingRules.of(job)
    sets = {"train": inputs.train, **inputs.eval}
    for stores in sets.values():
        for store in stores:
            audit(store.blocks(), facts, rules, store.stats["files"])
    loader = TrainLoader(Corpus(inputs.train, [source.weight for source in job.data.train]), job, Share())
    together = {"train": _global_batches(loader)}
    reports = {name: _describe(stores, job, together.get(name, [])) for name, stores in sets.items()}
    return CheckReport(
        job=loaded,
        sets=reports,
        steps=total_steps(job, loader),
        batch=loader.rows,
        unit=build_objective(job).unit if job.task == "preference" else "rows",
        without_bos=sum(without_bos(store.blocks(), facts) for stores in sets.values() for store in stores),
        sample=inputs.train[0][0],
        tokenizer=tokenizer,
        audit=found,
    )


def _global_batches(loader: TrainLoader) -> list[Indices]:
    """The sequences of the first epoch, as many at a time as a step sees."""
    items = loader.epoch_rows(0).items
    return [items[start : start + loader.rows] for start in range(0, len(items), loader.rows)]


def _describe(stores: Sequence[SequenceStore], job: TrainingJob, together: Sequence[Indices]) -> SetReport:
    counts = count(stores, job.row_tokens, packing=job.data.packing)
    if job.task == "preference":
        counts = _of_answers(counts, Corpus(stores, [1.0] * len(stores)), job, together)
    records, rejected, cut = (sum(store.stats[key] for store in stores) for key in ("records", "rejected", "cut"))
    return SetReport(counts, records, rejected, cut)


def _of_answers(counts: Counts, corpus: Corpus, job: TrainingJob, together: Sequence[Indices]) -> Counts:
    """The same for prompts with answers: the length is that of the prompt with its longer answer.

    Their rows hold what is packed `together`: a global batch, or all of an evaluation set where that is empty.
    """
    parts_N3, lengths_N = corpus.parts_N3, build_layout(job).lengths(corpus)
    longest_N = parts_N3[:, 0] + parts_N3[:, 1:].max(axis=1)
    percentiles = {p: int(np.percentile(longest_N, p, method="higher")) for p in counts.percentiles}
    capacity, groups = job.row_tokens if job.data.packing else None, together or [np.arange(len(lengths_N))]
    rows = sum(len(pack_rows(lengths_N[group], capacity)) for group in groups)
    room = rows * (capacity or int(lengths_N.max()))
    filled = sum(int(lengths_N[group].sum()) for group in groups) / room
    return replace(counts, percentiles=percentiles, rows=rows, efficiency=filled)


def print_check(found: CheckReport) -> None:
    """The report for a person, on standard output."""
    console = Console(highlight=False, soft_wrap=True)
    job = found.job.job
    each = "sequences" if found.unit == "rows" else found.unit
    console.print(f"{job.task}: data in tokens of {job.model.path}\n")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))  # as narrow as 80 columns
    for name in ("set", "records", "left out", "cut", each, "tokens", "trained on", "rows", "filled"):
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
    for line in lines_of(found.audit, job.data.audit):
        console.print(line, markup=False)
    console.print(f"the run: {found.steps:,} steps of {found.batch:,} {found.unit}")
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
    """The sequence's text; «green» where it is trained on, dim elsewhere (a log has no colours, so both).

    Of a prompt with answers the prompt's end, and each answer on a line of its own.
    """
    prompt, *answers = sequence.parts
    if not prompt:
        return _coloured(sequence, 0, min(len(sequence.ids), SAMPLE_TOKENS), tokenizer)
    text, start = _coloured(sequence, max(0, prompt - SAMPLE_TOKENS), prompt, tokenizer), prompt
    single = "desirable" if sequence.desirable else "undesirable"
    for name, length in zip(("chosen", "rejected") if answers[1] else (single,), answers, strict=False):
        text.append(f"\n{name}: ")
        text.append_text(_coloured(sequence, start, start + min(length, SAMPLE_TOKENS), tokenizer))
        start += length
    return text


def _coloured(sequence: TokenSequence, start: int, stop: int, tokenizer: Any) -> Text:
    text, trained = Text(), sequence.trained
    for end in range(start + 1, stop + 1):
        if end == stop or trained[end] != trained[start]:
            part = tokenizer.decode(sequence.ids[start:end])
            text.append(*((f"«{part}»", "green") if trained[start] else (part, "dim")))
            start = end
    return text
