"""A rank of a training job: what it builds from a run folder, what it refuses, and how it says why it failed."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.making import tiny_model, tiny_tokenizer, write_job, write_jsonl
from tests.pool import Pool
from tests.running import WORDS, prepare_folder, ragged_rows
from velocity.config.job import load_job
from velocity.distributed import failure
from velocity.distributed.comm import Ranks
from velocity.planner.hardware import Hardware
from velocity.planner.plan import resolve
from velocity.training.run import train
from velocity.training.run_folder import RunFolder
from velocity.training.setup import claim, prepare_inputs

MACHINE = Hardware(2, 8.0, cpu_bf16=False)


def claimed(folder: Path, **sections: Any) -> RunFolder:
    """The run folder of a job on two ranks, as `velocity run` leaves it to them."""
    job = write_job(folder / "job.yaml", **{"launch": {"processes": 2}, "strategy": {"zero": 2}, **sections})
    loaded = resolve(load_job(job), MACHINE, folder / "model")
    inputs = prepare_inputs(loaded.job, folder / "model", lambda text: None)
    return claim(loaded, inputs, MACHINE.describe(), fresh=False)


def _train(ranks: Ranks, path: Path) -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        train(RunFolder(path), ranks)
    finally:
        for number, handler in handlers.items():  # the pool's process goes on
            signal.signal(number, handler)


def test_a_run_counts_the_steps_of_its_epochs_and_scores_every_set_five_times_and_before(pool: Pool, tmp_path: Path):
    prepare_folder(tmp_path)
    write_jsonl(tmp_path / "unseen.jsonl", ragged_rows(5))
    run = claimed(
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
    run = claimed(
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
    run = claimed(tmp_path, duration={"steps": 1})
    pool(_train, run.path)
    assert run.status()["state"] == "complete"


@pytest.fixture(name="failed", scope="module")
def _failed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[tuple[int, str, RunFolder]]]]:
    """A real rank on two run folders that are not whole, at the same time."""
    folder = tmp_path_factory.mktemp("failed")
    prepare_folder(folder / "job without an environment")
    claimed(folder / "job without an environment", launch={"processes": 1}).environment.unlink()
    (folder / "no job" / "run").mkdir(parents=True)

    def start(name: str) -> tuple[int, str, RunFolder]:
        run = RunFolder(folder / name / "run")
        node = [sys.executable, "-m", "velocity.distributed.node", "1", str(run.failures)]
        command = [*node, "velocity.training.run", str(run.path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        return done.returncode, done.stderr, run

    with ThreadPoolExecutor(2) as starter:
        yield {name: starter.submit(start, name) for name in ("no job", "job without an environment")}


Failed = dict[str, "Future[tuple[int, str, RunFolder]]"]


def test_a_rank_that_is_given_wrong_input_says_so_without_a_traceback(failed: Failed):
    status, said, run = failed["no job"].result()
    assert status == 2, said
    cause = failure.cause(run.failures)
    assert cause is not None
    assert (cause["rank"], cause["exit_status"], cause["trace"]) == (0, 2, "")
    assert cause["what"].startswith("cannot read the job file: ")
    assert "Traceback" not in said


def test_a_rank_that_fails_unexpectedly_keeps_its_traceback_for_those_who_ask(failed: Failed):
    status, said, run = failed["job without an environment"].result()
    assert status == 1, said
    cause = failure.cause(run.failures)
    assert cause is not None
    assert cause["what"].startswith("No such file or directory\n  where: ")
    assert f", rank 0 on {failure.host()}\n" in cause["what"]
    assert "Traceback" in cause["trace"] and "environment.json" in cause["trace"]
    assert "Traceback" not in said
    assert json.loads(json.dumps(cause)) == cause
