"""A rank of a training job: what it builds from a run folder, and what the numbers of its run count."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tests.making import tiny_model, tiny_tokenizer, write_job, write_jsonl
from tests.pool import Pool
from tests.running import MACHINE, WORDS, claimed, prepare_folder, ragged_rows
from velocity.config.load import load_job
from velocity.distributed.comm import Ranks
from velocity.planner.machines import Cluster
from velocity.planner.plan import resolve
from velocity.runs.folder import RunFolder
from velocity.training.run import train


def claimed_with(folder: Path, **sections: Any) -> RunFolder:
    """The run folder of a job on two ranks with these sections."""
    job = write_job(folder / "job.yaml", **{"launch": {"processes": 2}, "strategy": {"zero": 2}, **sections})
    return claimed(resolve(load_job(job), Cluster(MACHINE), folder / "model"))


def _train(ranks: Ranks, path: Path) -> None:
    train(RunFolder(path), ranks)


def test_a_run_counts_the_steps_of_its_epochs_and_scores_every_set_five_times_and_before(pool: Pool, tmp_path: Path):
    prepare_folder(tmp_path)
    write_jsonl(tmp_path / "unseen.jsonl", ragged_rows(5))
    run = claimed_with(
        tmp_path,
        data={"packing": False, "eval": {"unseen": str(tmp_path / "unseen.jsonl")}},
        batch={"rows": 6, "micro": 2},
        duration={"epochs": 1},
    )
    pool(_train, run.path)
    # 60 chats, 6 a step: ten steps; scored before the first, and after every second
    assert [line["step"] for line in run.lines() if "loss" in line] == list(range(1, 11))
    assert [line["step"] for line in run.lines() if "eval" in line] == [0, 2, 4, 6, 8, 10]
    assert run.status() == {"state": "complete", "inputs": run.status()["inputs"], "steps": 10}
    assert "60 records" in (run.model / "README.md").read_text()


@pytest.mark.parametrize(("kind", "unit", "loss"), [("dpo", "pairs", math.log(2)), ("kto", "answers", 0.5)])
def test_a_preference_run_begins_at_its_reference_and_tells_what_it_counts(
    pool: Pool, tmp_path: Path, kind: str, unit: str, loss: float
):
    prepare_folder(tmp_path)
    rows = [{"prompt": f"{word}?", "chosen": f"{word} it is.", "rejected": f"no {word}"} for word in WORDS]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    run = claimed_with(
        tmp_path,
        task="preference",
        preference={"kind": kind},
        data={"train": str(tmp_path / "pairs.jsonl"), "eval": {"unseen": str(tmp_path / "pairs.jsonl")}},
        batch={"rows": 6, "micro": 1},
        duration={"steps": 3},
    )
    pool(_train, run.path)
    steps = [line for line in run.lines() if "loss" in line]
    before = next(line["eval"]["unseen"] for line in run.lines() if "eval" in line)
    assert [line[unit] for line in steps] == [6, 6, 6]
    assert all(line["tokens"] > line[unit] for line in steps), "answers have several tokens that are trained on"
    # every reward is 0 where the policy is its reference: -log sigmoid(0), and 1 - sigmoid(0)
    assert (before["loss"], before["margin"]) == (pytest.approx(loss, abs=1e-4), pytest.approx(0, abs=1e-4))
    assert before[unit] == len(WORDS) * (2 if kind == "kto" else 1)
    assert "perplexity" not in before
    assert {what for _, what, _, _ in run.results()} >= {"reward accuracy", "reward margin"}
    assert run.status()["state"] == "complete"


def test_a_model_with_dropout_is_not_taken_for_one_that_leaks_or_scores_otherwise(pool: Pool, tmp_path: Path):
    from transformers import GPT2Config

    tokenizer = tiny_tokenizer()
    config = GPT2Config(  # drops a tenth, as it is
        vocab_size=len(tokenizer), n_embd=64, n_layer=2, n_head=4, n_positions=512, initializer_range=0.2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    assert config.resid_pdrop == 0.1
    tiny_model(config).save_pretrained(str(tmp_path / "model"))
    tokenizer.save_pretrained(str(tmp_path / "model"))
    write_jsonl(tmp_path / "train.jsonl", ragged_rows(8))
    run = claimed_with(tmp_path, duration={"steps": 1})
    pool(_train, run.path)
    assert run.status()["state"] == "complete"
