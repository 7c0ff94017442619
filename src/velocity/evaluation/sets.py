"""One set of rows is measured on an engine, shard by shard, by all ranks. It knows no kind's measures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from velocity.config.evaluate import EvaluateJob
from velocity.distributed.comm import Ranks, Tally
from velocity.evaluation.scoring import Asked, Judged, Scorer, asked_of
from velocity.evaluation.store import EvalStore
from velocity.inference import build
from velocity.inference.engine import Engine
from velocity.inference.ledger import Ledger
from velocity.inference.progress import Progress, Report
from velocity.inference.request import Completion, Request, seed_of
from velocity.inference.text import Spoken
from velocity.inference.work import Work, claims, finish_all
from velocity.runs.folder import RunFolder
from velocity.terminal import say


@dataclass(frozen=True)
class Place:
    """Who measures, and where what was measured goes."""

    run: RunFolder
    ranks: Ranks
    engine: Engine
    stopping: Callable[[], bool]
    written: Callable[[Path], None]  # is told of each file that is finished

    def progress(self, todo: Todo, tally: Tally) -> Progress:
        """Counts of all ranks; the first one tells of them."""
        report = None
        if self.ranks.first:
            tell: Callable[[str], None] = lambda text: say(f"{todo.name}: {text}")  # noqa: E731
            where = (self.run.metrics, self.run.log)
            report = Report(*where, len(todo.store), todo.done, tell, todo.name, todo.behind)
        return Progress(tally, self.stopping, report, self.ranks.device, counts=self.engine.leads)


@dataclass(frozen=True)
class Todo:
    """A set, which of its shards are to be done, and how many rows the sets before it have."""

    name: str
    store: EvalStore
    ledger: Ledger
    shards: Sequence[int]
    behind: int = 0

    @property
    def done(self) -> int:
        """Rows that were finished before."""
        return len(self.store) - sum(len(self.ledger.shards[shard]) for shard in self.shards)


def ledger_of(
    run: RunFolder, name: str, store: EvalStore, written: Callable[[Path], None] = lambda file: None
) -> Ledger:
    """The shards of a set, in files that begin with its name."""
    return Ledger(run.shards, store.lengths, written, f"{name}-")


def score_set(todo: Todo, place: Place, scorer: Scorer) -> None:
    """Every option of every row has its log-probability; InterruptedRun where we are asked to stop."""
    tally = Tally(place.ranks)

    def asked(row: int) -> list[Asked]:
        return [asked_of(row, todo.store[row], share=scorer.share)]

    work: Work[Asked, list[Judged]] = Work(
        todo.ledger, claims(place.engine, tally, todo.shards), asked, _judged_line, writes=place.engine.leads
    )
    progress = place.progress(todo, tally)
    finish_all(work, scorer.run(work, progress), progress, place.ranks)


def _judged_line(asked: Asked, judged: Sequence[Judged]) -> dict[str, Any]:
    if not all(math.isfinite(one.logprob) for one in judged):
        return {"row": asked.row, "error": "the model's log-probabilities are not finite"}
    return {"row": asked.row, "logprobs": [one.logprob for one in judged], "tokens": [one.tokens for one in judged]}


def answer_set(todo: Todo, place: Place, job: EvaluateJob, spoken: Spoken) -> None:
    """Every row has the model's own answer; InterruptedRun where we are asked to stop."""
    tally, store = Tally(place.ranks), todo.store

    def asked(row: int) -> list[Request]:
        return [Request(row, 0, list(store[row].prompt), seed_of(job.seed, store.id(row), 0))]

    def line(request: Request, completion: Completion) -> Mapping[str, Any]:
        failed = completion.error is not None
        told = {"completion": None if failed else spoken.text(request.ids, completion.ids),
                "finish_reason": completion.finish, "completion_tokens": len(completion.ids)}  # fmt: skip
        return {"row": request.row, **told, **({"error": completion.error} if failed else {})}

    work: Work[Request, Completion] = Work(
        todo.ledger, claims(place.engine, tally, todo.shards), asked, line, writes=place.engine.leads
    )
    longest = build.longest_row(job, store.lengths)
    decoder = build.build_decoder(job, place.engine, spoken, longest, store.shared)
    progress = place.progress(todo, tally)
    finish_all(work, decoder.run(work, progress), progress, place.ranks)
