"""lm-eval's tasks on our engines: what it asks for is dealt out to the ranks, and all of them have every answer.

Every rank runs lm-eval alike, as if it were alone; so the same requests come in the same order everywhere.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from velocity.config.evaluate import EvaluateJob
from velocity.distributed import comm, pulse
from velocity.errors import InterruptedRun, JobError
from velocity.evaluation.harness import run_benchmarks
from velocity.evaluation.lm import VelocityLM
from velocity.evaluation.result import benchmark_file
from velocity.evaluation.scoring import Asked, Scorer, attention_for, pieces_of, scoring_attention
from velocity.evaluation.sets import Place
from velocity.files import write_atomically
from velocity.inference import build
from velocity.inference.request import Request, seed_of
from velocity.inference.text import Spoken
from velocity.runs.model import context_length
from velocity.terminal import say

Pair = tuple[list[int], list[int]]  # a context and what follows it, as token ids


class Benchmarks:
    """The tasks of a job."""

    def __init__(self, job: EvaluateJob, folder: Path, tokenizer: Any, place: Place, scorer: Scorer) -> None:
        self.job, self.folder, self.tokenizer, self.place, self.scorer = job, folder, tokenizer, place, scorer
        split = int(job.strategy.tensor) if job.generation.engine == "deepspeed" else 1
        self.groups, self.group = place.ranks.world_size // split, place.ranks.rank // split

    def run(self, tasks: Sequence[str]) -> None:
        """Each task's figures and rows lie beside the shards; InterruptedRun where we are asked to stop."""
        config = self.job.benchmarks
        assert config is not None, "asked only where there are some"
        length = context_length(self.folder) or self.job.data.sequence_length
        lm = VelocityLM(self.score, self.complete, self.tokenizer, min(length, self.job.data.sequence_length))
        for task in tasks:
            if self.place.ranks.first:
                say(f"benchmark {task} …")
            found = run_benchmarks(config.model_copy(update={"tasks": (task,)}), lm)[task]
            if self.place.ranks.first:
                file = benchmark_file(self.place.run, task)
                write_atomically(file, json.dumps(found, default=str))
                self.place.written(file)

    def score(self, rows: Sequence[Pair]) -> list[tuple[float, bool]]:
        """Of each continuation the sum of its log-probabilities, and whether each token is the likeliest."""
        order = sorted(range(len(rows)), key=lambda row: -len(rows[row][0]) - len(rows[row][1]))
        mine = _Rows(Asked(row, _piece(*rows[row])) for row in order[self.group :: self.groups])
        with scoring_attention(self.place.engine.model, attention_for(self.job.model.attention)):
            found = {asked.row: judged[0] for asked, judged in self.scorer.run(mine, _Watch(self.place))}
        return [(one.logprob, one.likeliest) for one in self._all(found, len(rows))]

    def complete(self, requests: Sequence[tuple[list[int], Mapping[str, Any]]]) -> list[str]:
        """What the model says behind each prompt; requests of the same settings go together."""
        alike: dict[str, list[int]] = {}
        for row, (_, settings) in enumerate(requests):
            alike.setdefault(json.dumps(settings, sort_keys=True, default=str), []).append(row)
        found: dict[int, str] = {}
        for rows in alike.values():
            found |= self._complete_alike(rows, requests)
        return list(self._all(found, len(requests)))

    def _complete_alike(
        self, rows: Sequence[int], requests: Sequence[tuple[list[int], Mapping[str, Any]]]
    ) -> dict[int, str]:
        """Our group's share of them."""
        settings = requests[rows[0]][1]
        until = settings.get("until") or []
        temperature = float(settings.get("temperature") or 0.0) if settings.get("do_sample") else 0.0
        changed = {"max_new_tokens": int(settings["max_gen_toks"]), "temperature": temperature,
                   "stop": tuple([until] if isinstance(until, str) else until)}  # fmt: skip
        job = self.job.model_copy(update={"generation": self.job.generation.model_copy(update=changed)})
        spoken = Spoken(self.tokenizer, job.generation, self.folder)
        order = sorted(rows, key=lambda row: -len(requests[row][0]))
        mine = [
            Request(row, 0, requests[row][0], seed_of(job.seed, str(row), 0))
            for row in order[self.group :: self.groups]
        ]
        longest = max(len(requests[row][0]) for row in rows) + job.generation.max_new_tokens
        decoder = build.build_decoder(job, self.place.engine, spoken, longest, ())
        done = {}
        for request, completion in decoder.run(_Rows(mine), _Watch(self.place)):
            if completion.error is not None:
                raise JobError(
                    f"a row failed by itself: {completion.error}", "benchmarks", "run the same command again"
                )
            done[request.row] = spoken.text(request.ids, completion.ids)
        return done

    def _all(self, found: Mapping[int, Any], count: int) -> list[Any]:
        """Every rank's answers, in order; InterruptedRun, on all ranks, where one was asked to stop."""
        pulse.busy("waiting for the other ranks' answers")
        known = {row: one for share in comm.gather(dict(found)) for row, one in share.items()}
        if len(known) < count:
            raise InterruptedRun("stopped; finished benchmarks are kept", fix="run the same command to go on")
        return [known[row] for row in range(count)]


def _piece(context: Sequence[int], continuation: Sequence[int]) -> Sequence[Any]:
    ids = np.asarray(continuation, dtype=np.int32)
    return pieces_of(context, [(ids, np.ones(len(ids), dtype=np.uint8))], share=False)


class _Rows:
    """A queue of what is asked."""

    def __init__(self, rows: Iterable[Any]) -> None:
        self._rows = deque(rows)

    def peek(self) -> Any:
        return self._rows[0] if self._rows else None

    def pop(self) -> Any:
        return self._rows.popleft()


class _Watch:
    """Who looks on."""

    def __init__(self, place: Place) -> None:
        self.stopping = place.stopping

    def made(self, tokens: int) -> None:
        pulse.at_work()
