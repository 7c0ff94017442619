"""One rank of a generate job: takes shards, completes their rows, and puts them down until there is none left.

`python -m velocity.distributed.begin velocity.inference.run RUN_FOLDER` under torchrun.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from velocity.checkpoints.restore import fetch_shards
from velocity.config.generate import GenerateJob
from velocity.config.load import read_resolved
from velocity.data.prompts import PromptStore
from velocity.data.tokenizer import load_tokenizer
from velocity.distributed import comm, pulse
from velocity.distributed.comm import Ranks, Tally
from velocity.errors import InterruptedRun, JobError
from velocity.inference import build
from velocity.inference.engine import Engine
from velocity.inference.ledger import Ledger
from velocity.inference.mirror import FINISH_SECONDS, ShardMirror, send_result
from velocity.inference.output import completed, write_jsonl, write_parquet
from velocity.inference.progress import Progress, Report
from velocity.inference.request import Completion, Request, seed_of
from velocity.inference.text import Spoken
from velocity.inference.work import Work, claims, finish_all
from velocity.runs.folder import RunFolder
from velocity.runs.rank import as_rank
from velocity.terminal import say

MEMORY_FIX = "batch.rows or batch.tokens lower, a shorter generation.max_new_tokens, or generation.engine: zero"
PERCENTILES = (50, 90, 99, 100)


@dataclass(frozen=True)
class Speaker:
    """What a row asks for, and what a line of its completion says."""

    job: GenerateJob
    prompts: PromptStore
    spoken: Spoken

    def requests_of(self, row: int) -> list[Request]:
        """One request a completion."""
        ids, name = self.prompts.ids(row), self.prompts.id(row)
        count = self.job.generation.completions
        return [Request(row, sample, ids, seed_of(self.job.seed, name, sample)) for sample in range(count)]

    def describe(self, request: Request, completion: Completion) -> dict[str, Any]:
        """A line of a shard."""
        generation = self.job.generation
        line: dict[str, Any] = {"row": request.row}
        if generation.completions > 1:
            line["sample"] = request.sample
        failed = completion.error is not None
        line |= {
            "completion": None if failed else self.spoken.text(request.ids, completion.ids),
            "finish_reason": completion.finish,
            "prompt_tokens": len(request.ids),
            "completion_tokens": len(completion.ids),
        }
        if generation.logprobs:
            line["logprobs"] = [round(value, 6) for value in completion.logps]
        return {**line, "error": completion.error} if failed else line


def generate(run: RunFolder, ranks: Ranks, stopping: Callable[[], bool] = lambda: False) -> None:
    """The job of a run folder is done: every row stands in its file of completions, once and in order."""
    job: GenerateJob = read_resolved(run.job)
    pulse.watched(job.launch.hang_seconds)
    environment = json.loads(run.environment.read_text())
    comm.check_device(ranks.device, environment["hardware"]["gpus"])
    prompts, folder = PromptStore(Path(environment["prompts"]["store"])), Path(environment["model_folder"])
    ledger = Ledger(run.shards, prompts.lengths)
    todo: list[int] = comm.from_first(ledger.unfinished() if ranks.first else None)
    url = job.checkpoint.mirror
    if todo:
        if ranks.first:
            say("loading the model …")
        engine = build.build_engine(
            job, folder, json.loads(run.deepspeed.read_text()), ranks, build.longest_row(job, prompts.lengths)
        )
        tokenizer = load_tokenizer(folder, job.data.chat_template, remote_code=job.model.trust_remote_code)
        speaker = Speaker(job, prompts, Spoken(tokenizer, job.generation, folder))
        with mirrored(run, ranks, url) as written:
            _complete(run, ranks, engine, speaker, todo, stopping, written)
    if ranks.first:
        if url is not None and ranks.private:
            fetch_shards(url, run.path)
        finish(run, job, prompts, ledger)
        if url is not None:
            send_result(url, run.path)
    comm.wait_for_all()


@contextmanager
def mirrored(run: RunFolder, ranks: Ranks, url: str | None) -> Iterator[Callable[[Path], None]]:
    """What is told of finished shards sends them to the mirror; at the end, which all ranks await, they are there."""
    if url is None:
        yield lambda file: None
        return
    mirror = ShardMirror(url, run.path, first=ranks.first)
    left = (*run.shards.glob("*.jsonl"), *run.shards.glob("*.json"))  # rows, and figures of benchmarks
    for file in sorted(left) if ranks.keeps else ():
        mirror.offer(file)  # it may not have arrived before we were killed
    patience_seconds = 0.0  # of a job that fails
    try:
        yield mirror.offer
        patience_seconds = FINISH_SECONDS
    except InterruptedRun:
        patience_seconds = FINISH_SECONDS
        raise
    finally:
        pulse.busy("sending to the mirror")
        mirror.finish(patience_seconds)
        if patience_seconds:
            comm.wait_for_all()  # torchrun kills who leaves 30 s after the first one


def _complete(  # noqa: PLR0913 - all that answering depends on
    run: RunFolder,
    ranks: Ranks,
    engine: Engine,
    speaker: Speaker,
    todo: Sequence[int],
    stopping: Callable[[], bool],
    written: Callable[[Path], None],
) -> None:
    """Every shard that was to do is done, by us or by others; InterruptedRun where we are asked to stop."""
    tally, prompts = Tally(ranks), speaker.prompts
    ledger = Ledger(run.shards, prompts.lengths, written)
    work = Work(ledger, claims(engine, tally, todo), speaker.requests_of, speaker.describe, writes=engine.leads)
    longest = build.longest_row(speaker.job, prompts.lengths)
    decoder = build.build_decoder(speaker.job, engine, speaker.spoken, longest, prompts.shared)
    rows = sum(len(ledger.shards[shard]) for shard in todo)
    report = Report(run.metrics, run.log, len(prompts), len(prompts) - rows, say) if ranks.first else None
    progress = Progress(tally, stopping, report, ranks.device, counts=engine.leads)
    try:
        finish_all(work, decoder.run(work, progress), progress, ranks)
    finally:
        engine.close()


def finish(run: RunFolder, job: GenerateJob, prompts: PromptStore, ledger: Ledger) -> None:
    """The file of completions is there; JobError, with the shards kept, where rows failed by themselves."""
    pulse.busy("putting the completions together")
    if away := [shard for shard in range(len(ledger.shards)) if ledger.state(shard) is None]:
        what = f"{len(away)} of {len(ledger.shards)} shards of rows did not come from other nodes through the mirror"
        raise JobError(what, str(run.shards), "run the same command: their rows are done again")
    path = run.completions[job.generation.format]
    say("putting the completions together …")
    if job.generation.format == "parquet":
        write_parquet(path, completed(prompts, ledger), completed(prompts, ledger))
    else:
        write_jsonl(path, completed(prompts, ledger))
    failures, facts = _facts(ledger)
    with run.metrics.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"step": len(prompts), "completed": facts}) + "\n")
    if failures:
        what = f"{len(failures):,} of {len(prompts):,} rows failed by themselves, the first: {failures[0]['error']}"
        raise JobError(what, f"{path}, id {prompts.id(failures[0]['row'])}", "run the same command to try them again")
    run.set_status("complete")
    shutil.rmtree(run.shards, ignore_errors=True)


def _facts(ledger: Ledger) -> tuple[list[Mapping[str, Any]], dict[str, Any]]:
    """The lines that failed, and what all of them are like."""
    failures: list[Mapping[str, Any]] = []
    lengths: list[int] = []
    prompts: list[int] = []
    finishes: dict[str, int] = {}
    for shard in range(len(ledger.shards)):
        for line in ledger.lines(shard):
            lengths.append(line["completion_tokens"])
            prompts.append(line["prompt_tokens"])
            finishes[line["finish_reason"]] = finishes.get(line["finish_reason"], 0) + 1
            if "error" in line:
                failures.append(line)
    return failures, {
        "completions": len(lengths),
        "finish_reasons": finishes,
        "prompt_tokens": _spread(prompts),
        "completion_tokens": _spread(lengths),
    }


def _spread(values: Sequence[int]) -> dict[str, int]:
    return {str(p): int(np.percentile(values, p, method="higher")) for p in PERCENTILES}


def main(folder: str) -> int:
    """Complete the rows, and say how it went."""
    return as_rank(folder, generate, MEMORY_FIX)
