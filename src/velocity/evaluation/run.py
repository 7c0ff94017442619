"""One rank of an evaluate job: scores and answers rows, shard by shard, until every set and benchmark has its figures.

`python -m velocity.distributed.begin velocity.evaluation.run RUN_FOLDER` under torchrun.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from velocity.checkpoints.restore import fetch_shards
from velocity.config.evaluate import EvaluateJob
from velocity.config.load import read_resolved
from velocity.data.tokenizer import load_tokenizer
from velocity.distributed import comm, pulse
from velocity.distributed.comm import Ranks
from velocity.evaluation import result
from velocity.evaluation.scoring import Scorer, attention_for, scoring_attention
from velocity.evaluation.sets import Place, Todo, answer_set, ledger_of, score_set
from velocity.evaluation.store import EvalStore
from velocity.inference import build
from velocity.inference.mirror import send_result
from velocity.inference.run import mirrored
from velocity.inference.text import Spoken
from velocity.runs.folder import RunFolder
from velocity.runs.rank import as_rank
from velocity.terminal import say

MEMORY_FIX = "data.sequence_length lower, batch.rows or batch.tokens lower, or generation.engine: zero"


def evaluate(run: RunFolder, ranks: Ranks, stopping: Callable[[], bool] = lambda: False) -> None:
    """The job of a run folder is done: its figures stand in evaluation.json, its rows beside them."""
    job: EvaluateJob = read_resolved(run.job)
    pulse.watched(job.launch.hang_seconds)
    environment = json.loads(run.environment.read_text())
    comm.check_device(ranks.device, environment["hardware"]["gpus"])
    sets = {name: EvalStore(Path(entry["store"])) for name, entry in environment["sets"].items()}
    url = job.checkpoint.mirror
    with mirrored(run, ranks, url) as written:
        ledgers = {name: ledger_of(run, name, store, written) for name, store in sets.items()}
        left = comm.from_first({name: ledger.unfinished() for name, ledger in ledgers.items()} if ranks.first else None)
        in_turn = sorted(sets, key=lambda name: job.data.eval[name].kind == "answers")  # these come last
        behind = dict(zip(in_turn, accumulate((len(sets[name]) for name in in_turn), initial=0), strict=False))
        todo = [Todo(name, sets[name], ledgers[name], shards, behind[name]) for name, shards in left.items() if shards]
        tasks = comm.from_first(result.benchmarks_left(run, job) if ranks.first else None)
        if todo or tasks:
            watched = (stopping, written)
            _measure(run, ranks, job, Path(environment["model_folder"]), watched, (todo, tasks))
    if ranks.first:
        if url is not None and ranks.private:
            fetch_shards(url, run.path)
        result.finish(run, job, sets)
        if url is not None:
            send_result(url, run.path)
    comm.wait_for_all()


def _measure(  # noqa: PLR0913 - all that measuring depends on
    run: RunFolder,
    ranks: Ranks,
    job: EvaluateJob,
    folder: Path,
    watched: tuple[Callable[[], bool], Callable[[Path], None]],
    left: tuple[Sequence[Todo], Sequence[str]],
) -> None:
    """What is left to do is done; InterruptedRun where we are asked to stop."""
    todo, tasks = left
    if ranks.first:
        say("loading the model …")
    longest = job.data.sequence_length + job.generation.max_new_tokens
    engine = build.build_engine(job, folder, json.loads(run.deepspeed.read_text()), ranks, longest)
    place = Place(run, ranks, engine, *watched)
    kinds = {one.name: job.data.eval[one.name].kind for one in todo}
    try:
        if any(kind != "answers" for kind in kinds.values()) or tasks:
            scorer = _scorer(job, place)
        for one in todo:
            if kinds[one.name] != "answers":
                with scoring_attention(engine.model, attention_for(job.model.attention)):
                    score_set(one, place, scorer)
        if "answers" in kinds.values() or tasks:
            tokenizer = load_tokenizer(folder, job.data.chat_template, remote_code=job.model.trust_remote_code)
            for one in todo:
                if kinds[one.name] == "answers":
                    answer_set(one, place, job, Spoken(tokenizer, job.generation, folder))
        if tasks:
            from velocity.evaluation.benchmarks import Benchmarks  # lm-eval takes seconds, and is not everywhere

            Benchmarks(job, folder, tokenizer, place, scorer).run(tasks)
    finally:
        engine.close()


def _scorer(job: EvaluateJob, place: Place) -> Scorer:
    """What scores on the engine, measured to do so rightly."""
    asked: Any = job.model.attention
    limit = build.limits(job, place.engine.device.type).prompt_tokens
    scorer = Scorer(place.engine, max(limit, job.data.sequence_length), share=asked in ("auto", "varlen"))
    with scoring_attention(place.engine.model, attention_for(asked)):
        scorer.check()
    return scorer


def main(folder: str) -> int:
    """Measure, and say how it went."""
    return as_rank(folder, evaluate, MEMORY_FIX)
