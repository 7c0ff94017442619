"""What a finished evaluate job leaves: its rows in input order, and their figures. It knows no engine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from velocity.config.evaluate import AnswersConfig, AnySet, EvaluateJob
from velocity.data.fingerprint import digest
from velocity.data.prompts import to_json
from velocity.distributed import pulse
from velocity.errors import JobError
from velocity.evaluation.items import opening
from velocity.evaluation.measures import Measure, measures_of, picked
from velocity.evaluation.scores.build import build_scores
from velocity.evaluation.sets import ledger_of
from velocity.evaluation.store import EvalStore, Item
from velocity.files import whole_file, write_atomically
from velocity.inference.ledger import Ledger
from velocity.inference.output import Places
from velocity.intervals import Interval, mean_interval, ratio_interval, seed_of
from velocity.runs.folder import RunFolder
from velocity.terminal import say

Scores = Mapping[str, Callable[..., float]]


def benchmarks_left(run: RunFolder, job: EvaluateJob) -> list[str]:
    """The tasks of lm-eval that have no result yet."""
    tasks = () if job.benchmarks is None else job.benchmarks.tasks
    return [task for task in tasks if not benchmark_file(run, task).is_file()]


def benchmark_file(run: RunFolder, task: str) -> Path:
    """Where a task's figures and rows wait until the job is done."""
    return run.shards / f"benchmark-{task.replace('/', '-')}.json"


def finish(run: RunFolder, job: EvaluateJob, sets: Mapping[str, EvalStore]) -> None:
    """evaluation.json and rows/ are there; JobError, with the shards kept, where rows are missing or failed."""
    pulse.busy("putting the figures together")
    say("putting the figures together …")
    told = {name: _finish_set(run, job, name, store) for name, store in sets.items()}
    benchmarks = {}
    for task in () if job.benchmarks is None else job.benchmarks.tasks:
        found = json.loads(benchmark_file(run, task).read_text())
        benchmarks[task] = found["figures"]
        _write_rows(run, f"benchmark-{task.replace('/', '-')}", found["rows"])
    figures = {
        "model": job.model.path,
        "engine": job.generation.engine,
        "precision": job.strategy.precision,
        "retrieval": None if job.retrieval is None else job.retrieval.model_dump(),
        "sets": told,
        "benchmarks": benchmarks,
    }
    write_atomically(run.evaluation, json.dumps(figures, indent=1) + "\n")
    with run.metrics.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"step": sum(map(len, sets.values())), "evaluated": True}) + "\n")
    run.set_status("complete")
    shutil.rmtree(run.shards, ignore_errors=True)


def _finish_set(run: RunFolder, job: EvaluateJob, name: str, store: EvalStore) -> dict[str, Any]:
    """The set's rows are written; its figures."""
    ledger, source = ledger_of(run, name, store), job.data.eval[name]
    if away := [shard for shard in range(len(ledger.shards)) if ledger.state(shard) is None]:
        what = f"{len(away)} of {len(ledger.shards)} shards of {name} did not come from other nodes through the mirror"
        raise JobError(what, str(run.shards), "run the same command: their rows are done again")
    scores: Scores = {}
    if isinstance(source, AnswersConfig):
        scores = build_scores(source.metrics, source.pattern, source.function)
    file = _write_rows(run, name, rows_of(source, store, ledger, scores))
    with file.open(encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    if failed := next((row for row in rows if "error" in row), None):
        count = sum("error" in row for row in rows)
        what = f"{count:,} of {len(rows):,} rows of {name} failed by themselves, the first: {failed['error']}"
        raise JobError(what, f"{file}, id {failed['id']}", "run the same command to try them again")
    measures = {
        measure: figures_of(values, seed_of(name, measure))
        for measure, values in measures_of(source.kind, rows).items()
    }
    return {"kind": source.kind, "rows": len(rows), "hash": digest([row["id"] for row in rows]), "measures": measures}


def rows_of(source: AnySet, store: EvalStore, ledger: Ledger, scores: Scores) -> Iterator[dict[str, Any]]:
    """Each row's result, in input order."""
    places = Places(ledger)
    for row in range(len(store)):
        item, line = store[row], next(places.lines(row))
        yield {"id": store.id(row), **_told(source, item, line, store.row(row), scores)}


def _told(
    source: AnySet, item: Item, line: Mapping[str, Any], asked: Mapping[str, Any], scores: Scores
) -> dict[str, Any]:
    """What was found of the row that is `asked`."""
    if "logprobs" not in line:
        if "error" not in line and scores:
            given = (line["completion"], item.told["reference"], asked)
            line = {**line, "scores": {name: score(*given) for name, score in scores.items()}}
        return {"row": line["row"], **item.told, **line}
    if source.kind == "perplexity":  # a text: its windows together
        found = {"logprob": sum(line["logprobs"]), "tokens": sum(line["tokens"]), "bytes": sum(item.bytes)}
        return {"row": line["row"], "text": opening(source, asked), **found}
    whole = {**item.told, **line, "bytes": list(item.bytes)}
    return {**whole, "picked": picked(whole)}


def figures_of(measure: Measure, seed: int) -> dict[str, Any]:
    """A measure with its 95 % interval, as evaluation.json has it."""
    if measure.bottom is None:
        found: Interval = mean_interval(measure.top, seed)
    else:
        found = ratio_interval(measure.top, measure.bottom, seed, measure.transform)
    return {"value": found.value, "low": found.low, "high": found.high, "better": measure.better}


def _write_rows(run: RunFolder, name: str, rows: Any) -> Path:
    run.rows.mkdir(exist_ok=True)
    file = run.rows / f"{name}.jsonl"
    with whole_file(file) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.writelines(to_json(row) + "\n" for row in rows)
    return file
