"""Local tasks of lm-eval, and what scores and completes token ids by plain transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from tests.making import write_jsonl

COLOURS = ["red", "green", "blue", "yellow", "black"]
QUESTIONS = [
    {
        "question": f"Question {i}: which colour is thing number {i % 7}?",
        "options": COLOURS[: 3 + i % 3],
        "answer": i % 3,
    }
    for i in range(12)
]
TEXTS = [
    {"text": " ".join(f"word{j * i % 11} says" for j in range(5 + 17 * i))} for i in range(1, 7)
]  # 11 to 214 words


@dataclass(frozen=True)
class Config:
    """What a job says of benchmarks."""

    tasks: Sequence[str]
    folder: str | None
    limit: int | None = None
    fewshot: int | None = None
    chat: bool = False


def write_tasks(folder: Path) -> Path:
    """Make `folder` one with five tasks of three kinds, a group of two of them, and their data."""
    questions, texts = (
        str(write_jsonl(folder / name, rows)) for name, rows in (("questions.jsonl", QUESTIONS), ("texts.jsonl", TEXTS))
    )
    base = {"dataset_path": "json", "test_split": "test", "metadata": {"version": 2.0}}
    asked = {**base, "dataset_kwargs": {"data_files": {"test": questions}}, "doc_to_text": "{{question}}\nAnswer:"}
    mean = {"aggregation": "mean", "higher_is_better": True}
    choices = {
        **asked, "output_type": "multiple_choice", "doc_to_choice": "{{options}}", "doc_to_target": "answer",
        "fewshot_split": "test",
        "metric_list": [{"metric": name, **mean} for name in ("acc", "acc_norm")],
    }  # fmt: skip
    tasks: dict[str, dict[str, Any]] = {
        "colours": choices,
        "colours_last": {**choices, "doc_to_text": "Tell me. {{question}}\nColour: "},  # the space goes to the answers
        "colours_bare": {**choices, "doc_to_text": ""},  # an empty context
        "likely": {
            **base, "dataset_kwargs": {"data_files": {"test": texts}}, "output_type": "loglikelihood_rolling",
            "doc_to_text": "", "doc_to_target": "{{text}}",
            "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
        },
        "said": {
            **asked, "output_type": "generate_until", "doc_to_target": "{{options[answer]}}",
            "generation_kwargs": {"until": ["\n", "?"], "max_gen_toks": 12, "do_sample": False},
            "metric_list": [{"metric": "exact_match", **mean},
                            {"metric": "chrf", "aggregation": "chrf", "higher_is_better": True}],
        },
    }  # fmt: skip
    for name, task in tasks.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **task}))
    group = {"group": "both", "task": ["colours", "colours_last"], "metadata": {"version": 3},
             "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}]}  # fmt: skip
    (folder / "both.yaml").write_text(yaml.safe_dump(group))
    return folder


@dataclass
class Plain:
    """A model of transformers, one row at a time: the functions that a VelocityLM asks."""

    model: Any
    tokenizer: Any

    @torch.inference_mode()
    def score(self, rows: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        found = []
        for context, continuation in rows:
            ids = torch.tensor([context + continuation])
            logits_SV = self.model(ids[:, :-1]).logits[0, -len(continuation) :].float().log_softmax(-1)
            labels_S = ids[0, -len(continuation) :]
            likeliest = bool((logits_SV.argmax(-1) == labels_S).all())
            found.append((float(logits_SV.gather(1, labels_S[:, None]).sum()), likeliest))
        return found

    @torch.inference_mode()
    def complete(self, requests: Sequence[tuple[list[int], Mapping[str, Any]]]) -> list[str]:
        said = []
        for ids, settings in requests:
            assert settings["temperature"] == 0.0 and not settings["do_sample"], "greedy"
            made = self.model.generate(
                torch.tensor([ids]), max_new_tokens=settings["max_gen_toks"], do_sample=False,
                pad_token_id=self.tokenizer.pad_token_id,
            )  # fmt: skip
            said.append(self.tokenizer.decode(made[0, len(ids) :], skip_special_tokens=True))
        return said


def as_json(value: Any) -> Any:
    """What comes back once it has been a file."""
    return json.loads(json.dumps(value, allow_nan=False))
