"""What tests of evaluation are made of: sets of every kind, evaluate jobs, and what transformers says of a row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml

from tests.generating import MACHINE
from tests.making import TEXT, tiny_model_folder, write_jsonl
from velocity.config.evaluate import EvaluateJob
from velocity.config.job import LoadedJob
from velocity.config.load import load_job
from velocity.evaluation.setup import Inputs, prepare_inputs
from velocity.evaluation.store import EvalStore, Item
from velocity.planner.inference import resolve
from velocity.planner.machines import Cluster
from velocity.runs.claim import claim
from velocity.runs.folder import RunFolder

WORDS = TEXT.split()


def said(number: int, length: int) -> str:
    """Some words of the text, others for each number."""
    return " ".join(WORDS[(7 * number + 3 * place) % len(WORDS)] for place in range(length))


def evaluation_folder(folder: Path, rows: int = 24, **model: Any) -> Path:
    """A tiny model, and a set of each kind; texts are longer than a window, questions have 2 to 5 choices."""
    tiny_model_folder(folder / "model", **model)
    write_jsonl(folder / "texts.jsonl", [{"text": said(i, 5 + 9 * i)} for i in range(rows // 2)])
    write_jsonl(folder / "choices.jsonl", [
        {"question": f"{said(i, 4 + i % 7)}?", "choices": [said(i + 11 * k, 2 + (i + k) % 6) for k in range(2 + i % 4)],
         "answer": i % 2}
        for i in range(rows)
    ])  # fmt: skip
    write_jsonl(
        folder / "pairs.jsonl",
        [{"prompt": f"{said(i, 5)}?", "chosen": said(i + 3, 6), "rejected": said(i + 40, 9)} for i in range(rows)],
    )
    write_jsonl(folder / "chats.jsonl", [
        {"messages": [{"role": "user", "content": f"{said(i, 3 + i % 5)}?"},
                      {"role": "assistant", "content": said(i + 5, 4)}]} for i in range(rows)
    ])  # fmt: skip
    return folder


def job_values(folder: Path, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """An evaluate job over all sets of the folder."""
    values: dict[str, Any] = {
        "task": "evaluate",
        "model": str(folder / "model"),
        "output": str(folder / "run"),
        "data": {
            "eval": {
                "texts": str(folder / "texts.jsonl"),
                "choices": {"path": str(folder / "choices.jsonl"), "kind": "choices"},
                "pairs": {"path": str(folder / "pairs.jsonl"), "kind": "preference"},
                "said": {"path": str(folder / "chats.jsonl"), "kind": "answers", "metrics": ["exact_match", "f1"]},
            },
            "sequence_length": 192,
            "cache": str(folder / "cache"),
        },
        "generation": {"max_new_tokens": 6},
        "strategy": {"precision": "fp32"},
    }
    for key, value in (changes or {}).items():
        *sections, name = key.split(".")
        section = values
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = value
    return values


def write_evaluate_job(path: Path, changes: Mapping[str, Any] | None = None) -> Path:
    """The job's file, beside the folder's sets."""
    path.write_text(yaml.safe_dump(job_values(path.parent, changes)))
    return path


def planned(path: Path, *overrides: str) -> LoadedJob[EvaluateJob]:
    """The job without an `auto`, for a machine with two cores."""
    loaded: LoadedJob[EvaluateJob] = load_job(path, overrides)
    return resolve(loaded, Cluster(MACHINE), Path(loaded.job.model.path))


def inputs_of(job: EvaluateJob) -> Inputs:
    """What the job reads."""
    return prepare_inputs(job, Path(job.model.path), lambda text: None)


def claimed(loaded: LoadedJob[EvaluateJob]) -> RunFolder:
    """The run folder describes the job."""
    return claim(loaded, inputs_of(loaded.job).manifest(loaded.job), MACHINE.describe(), fresh=False)


def rows_of(run: Path, name: str) -> list[dict[str, Any]]:
    """The rows of a set, as the run left them."""
    return [json.loads(line) for line in (run / "rows" / f"{name}.jsonl").read_text().splitlines()]


@cache
def whole_model(folder: Path) -> Any:
    """The folder's model by transformers alone."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()


@torch.inference_mode()
def logprobs_alone(folder: Path, item: Item) -> list[float]:
    """Of each option the log-probability, in a forward of its own behind its own prompt, from all logits."""
    found = []
    for option in item.options:
        ids = [*item.prompt, *option.ids.tolist()]
        scored = [False] * len(item.prompt) + option.trained.astype(bool).tolist()
        logps_SV = whole_model(folder)(torch.tensor([ids])).logits[0].double().log_softmax(dim=-1)
        found.append(sum(float(logps_SV[place - 1, ids[place]]) for place in range(1, len(ids)) if scored[place]))
    return found


def stores_of(folder: Path, changes: Mapping[str, Any] | None = None) -> Mapping[str, EvalStore]:
    """The sets of the folder's job as items."""
    return inputs_of(planned(write_evaluate_job(folder / "stores.yaml", changes)).job).sets
