"""Run folders as their tasks leave them, made by hand: what a report is made of. Numbers follow from the step alone."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tests.making import generate_data, write_job, write_jsonl
from velocity.config.load import load_job
from velocity.config.resolved import HEAD, render
from velocity.distributed import failure
from velocity.distributed.failure import Failure
from velocity.runs.folder import RunFolder

STARTED = 1_700_000_000.0
PLAN = {
    "task": "sft", "machine": {"name": "8xH100-80", "kind": "H100", "nodes": 1, "processes": 8, "device_gib": 79.6},
    "chosen": {"words": "ZeRO 2, micro 4", "device_bytes": 60 * 2**30, "tokens_per_second": 50_000.0},
}  # fmt: skip
ENVIRONMENT = {
    "velocity": "0.1.0", "versions": {"torch": "2.13.0", "deepspeed": "0.19.8", "bitsandbytes": ""},
    "hardware": {"cores": 96, "memory_gib": 1500.0, "gpus": [{"name": "H100", "memory_gib": 79.6}] * 2},
    "world_size": 8, "git_commit": "0123456789abcdef",
}  # fmt: skip


def step_line(step: int, steps: int, **changes: Any) -> dict[str, Any]:
    """A line of metrics.jsonl as a trainer writes it: a loss that falls, a rate that decays, some noise."""
    noise = random.Random(step).random()
    return {
        "step": step, "loss": 1.2 + 2.3 * math.exp(-4 * step / steps) + 0.3 * noise, "tokens": 1000,
        "learning_rate": 1e-5 * 0.5 * (1 + math.cos(math.pi * step / steps)), "grad_norm": 0.4 + noise,
        "tokens_per_second": 46_000 + 4000 * noise, "seconds": 0.5, "skipped": 0, "memory_gib": 55.5, **changes,
    }  # fmt: skip


def training_lines(steps: int, evaluations: int = 5) -> list[dict[str, Any]]:
    """The lines of a whole run: steps, evaluations of two sets, a checkpoint at each evaluation."""
    lines: list[dict[str, Any]] = [evaluated(0, steps)]
    for step in range(1, steps + 1):
        lines.append(step_line(step, steps))
        if step % max(steps // evaluations, 1) == 0:
            facts = {"seconds": 2.5, "blocked_seconds": 0.1, "bytes": 10**9, "kept": [step]}
            lines += [evaluated(step, steps), {"step": step, "checkpoint": facts}]
    return lines


def evaluated(step: int, steps: int) -> dict[str, Any]:
    """Perplexity falls from 24 to 12 on unseen text, give or take 2, and rises from 20 to 21 on general text."""
    values = {"unseen": 24 - 12 * step / steps, "general": 20 + step / steps}
    sets = {
        name: {
            "loss": math.log(value), "perplexity": value, "perplexity_low": value - 2, "perplexity_high": value + 2,
            "tokens": 999,
        }
        for name, value in values.items()
    }  # fmt: skip
    return {"step": step, "eval": sets}


def training_run(folder: Path, steps: int = 30, **job: Any) -> RunFolder:
    """A complete sft run of so many steps, with its data, its plan and its environment."""
    folder.mkdir(parents=True, exist_ok=True)
    job_file = write_job(folder.parent / f"{folder.name}.yaml", **{"output": str(folder), **job})
    run = RunFolder(folder)
    run.job.write_text(render(load_job(job_file, ["seed=7"])), "utf-8")
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in training_lines(steps)))
    run.plan.write_text(json.dumps(PLAN))
    run.environment.write_text(json.dumps({**ENVIRONMENT, "data": data_of(folder.parent)}))
    run.deepspeed.write_text(json.dumps({"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}}))
    run.deepspeed_origins.write_text(json.dumps({"zero_optimization.stage": "strategy.zero"}))
    run.set_status("complete", started=STARTED, steps=steps)
    return run


def data_of(folder: Path) -> dict[str, Any]:
    """What environment.json says of a training set of 300 sequences and an evaluation set; their store lies there."""
    store = folder / "cache" / "sequences" / "abc"
    store.mkdir(parents=True, exist_ok=True)
    lengths = np.array([20 + i * i % 231 for i in range(300)], dtype=np.int32)
    np.save(store / "lengths.npy", lengths)
    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    (corpus / "manifest.json").write_text(json.dumps({"licences": {"cwe-corpus==4.1": "CC-BY-4.0"}}))
    train = {
        "store": str(store), "path": str(corpus / "train.jsonl"), "files": [str(corpus / "train.jsonl")],
        "records": 302, "sequences": 300, "tokens": int(lengths.sum()), "trained": int(lengths.sum()) // 2,
        "rejected": 2, "too_long": 0, "cut": 1,
    }  # fmt: skip
    return {"train": [train], "eval": {"unseen": [{**train, "path": str(corpus / "unseen.jsonl"), "rejected": 0}]}}


def reject(run: RunFolder) -> None:
    """Two records were left out, each for a reason of its own, and an audit found a duplicate."""
    write_jsonl(run.rejected, [
        {"file": "train.jsonl", "line": 6, "field": "messages", "reason": "no turn of the assistant"},
        {"file": "train.jsonl", "line": 9, "field": "text", "reason": "empty"},
    ])  # fmt: skip
    finding = {
        "kind": "duplicates", "set": "train", "file": "train.jsonl", "line": 12, "reason": "the same text",
        "dropped": True, "with": "train.jsonl:3", "share": 1.0,
    }  # fmt: skip
    counts = {"duplicates": 1, "overlap": 0, "secrets": 0, "oddities": 0}
    audit = {"counts": counts, "dropped": {**counts}, "rows": {"train": 302, "unseen": 12}, "findings": [finding]}
    (run.path / "audit.json").write_text(json.dumps(audit))


def fail(run: RunFolder, what: str) -> None:
    """The run failed of that, at step 17."""
    failure.record(run.failures, 1, Failure(what, trace="Traceback: …"), {"step": 17, "what": "step", "host": "node-2"})
    run.set_status("failed", cause=what)


def restarted(run: RunFolder, step: int) -> None:
    """A rank was lost at that step, and the run started again."""
    failure.record(run.failures, 0, Failure("killed"), {"step": step, "what": "step", "host": "node-1"})
    failure.set_aside(run.failures, "attempt-1")


def generate_run(folder: Path, completions: Iterable[tuple[str, str]], lines: int = 20) -> RunFolder:
    """A complete generate run: prompts with their completions."""
    rows = list(completions)
    folder.mkdir(parents=True, exist_ok=True)
    job_file = write_job(folder.parent / f"{folder.name}.yaml")
    job_file.write_text(json.dumps({**generate_data(folder.parent), "output": str(folder)}))
    run = RunFolder(folder)
    run.job.write_text(render(load_job(job_file)), "utf-8")
    told = [
        {"step": 10 * i, "rows": 10, "seconds": 1.0, "tokens": 300, "rows_per_second": 10.0,
         "tokens_per_second": 300.0 + i % 7, "memory_gib": 1.5}
        for i in range(lines)
    ]  # fmt: skip
    counts = {"completions": len(rows), "finish_reasons": {"stop": len(rows)}}
    write_jsonl(run.metrics, [*told, {"step": len(rows), "completed": counts}])
    write_jsonl(run.completions["jsonl"], [
        {"id": f"r{i}", "prompt": prompt, "completion": text, "finish_reason": "stop", "prompt_tokens": 5,
         "completion_tokens": len(text.split())}
        for i, (prompt, text) in enumerate(rows)
    ])  # fmt: skip
    run.environment.write_text(json.dumps(ENVIRONMENT))
    run.set_status("complete", started=STARTED)
    return run


def measure(value: float, spread: float, better: str = "higher") -> dict[str, Any]:
    """A measure as evaluation.json has it."""
    return {"value": value, "low": value - spread, "high": value + spread, "better": better}


def evaluate_run(folder: Path, accuracy: float, *, seed: int = 0) -> RunFolder:
    """A complete evaluate run over sets of three kinds, 40 rows each, and a benchmark, as the contract has them."""
    folder.mkdir(parents=True, exist_ok=True)
    run = RunFolder(folder)
    run.job.write_text(
        f'{HEAD}task: "evaluate"  # judge.yaml:1\nmodel:\n  path: "runs/{folder.name}-model"  # judge.yaml:2\n'
        f"output: {json.dumps(str(folder))}  # judge.yaml:3\nseed: 0  # default\n", "utf-8"
    )  # fmt: skip
    evaluation = {
        "model": f"runs/{folder.name}-model", "engine": "transformers", "precision": "fp32", "retrieval": None,
        "sets": {
            "seen": {"kind": "choices", "rows": 40, "hash": "a", "measures": {
                "accuracy": measure(accuracy, 0.03), "accuracy_per_token": measure(accuracy + 0.02, 0.03)}},
            "unseen": {"kind": "perplexity", "rows": 40, "hash": "b", "measures": {
                "perplexity": measure(20 - 8 * accuracy, 0.6, "lower"), "bits_per_byte": measure(0.9, 0.02, "lower")}},
            "said": {"kind": "answers", "rows": 40, "hash": "c", "measures": {"f1": measure(accuracy / 2, 0.05)}},
        },
        "benchmarks": {"arc_easy": {"measures": {"acc": measure(0.5, 0.04)}, "version": 1.0, "rows": 100}},
    }  # fmt: skip
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    for name, rows in evaluated_rows(seed).items():
        write_jsonl(folder / "rows" / f"{name}.jsonl", rows)
    run.metrics.write_text("")
    seen = {"store": "gone", "records": 41, "rejected": 1, "kind": "choices", "files": ["seen.jsonl"], "rows": 40}
    run.environment.write_text(json.dumps({**ENVIRONMENT, "sets": {"seen": seen}}))
    run.set_status("complete", started=STARTED)
    return run


def evaluated_rows(seed: int) -> dict[str, list[dict[str, Any]]]:
    """Rows of each kind. Choice row i has margin (i − 10 + 3 seed) nats; text row i −(1 + i / 10) nats a token."""
    choices, texts, answers = [], [], []
    for i in range(40):
        margin = i - 10.0 + 3 * seed
        choices.append({
            "id": f"q{i}", "row": i, "prompt": f"Which weakness is meant by sentence {i}?", "answer": 1,
            "choices": ["A buffer is read past its end.", "An input is not checked.", "A path is followed blindly."],
            "logprobs": [-20.0, -20.0 + margin, -40.0], "tokens": [7, 6, 6], "bytes": [30, 24, 27],
            "picked": dict.fromkeys(("sum", "token", "byte"), 1 if margin > 0 else 0),
        })  # fmt: skip
        texts.append({"id": f"t{i}", "row": i, "logprob": -(1 + i / 10) * 100, "tokens": 100, "bytes": 420})
        said = f"It is weakness number {i if i % 3 else i + seed} of the list: its input must be checked before use."
        answers.append({
            "id": f"s{i}", "row": i, "prompt": f"What is weakness {i}?", "reference": [f"It is weakness number {i}."],
            "completion": said, "scores": {"f1": i / 40, "exact_match": 0.0},
        })  # fmt: skip
    return {"seen": choices, "unseen": texts, "said": answers}
