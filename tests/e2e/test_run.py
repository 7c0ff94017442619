"""`velocity run` as a user meets it: trains, leaves a model, is skipped when complete, stops and goes on, refuses."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess as Done
from typing import Any

import pytest
import yaml

from tests.ahead import done_ahead
from tests.commands import losses, start, step_lines, velocity
from tests.distributed.golden_jobs import leaves
from tests.making import write_job, write_jsonl
from tests.running import prepare_folder, ragged_rows
from velocity.config.load import option_names
from velocity.distributed.ds_config import RAW


def trained_job(folder: Path) -> None:
    """A finished job of two ranks, ZeRO 3, in 16 bit."""
    job = write_job(
        folder / "job.yaml",
        data={"eval": {"unseen": str(folder / "held_out.jsonl")}},
        strategy={"zero": 3, "precision": "bf16"},
        launch={"processes": 2},
        tracking=["tensorboard"],
        duration={"epochs": 2},
        optimizer={"learning_rate": 1e-3},
    )
    done = velocity("run", job)
    assert done.returncode == 0, done.stderr


def _longer_job(folder: Path, name: str) -> Path:
    return write_job(
        folder / f"{name}.yaml",
        output=str(folder / name),
        duration={"steps": 80},
        checkpoint={"every": 1000},
        optimizer={"learning_rate": 1e-3},
    )


def straight(folder: Path) -> None:
    done = velocity("run", _longer_job(folder, "straight"))
    assert done.returncode == 0, done.stderr


def stopped(folder: Path) -> tuple[int, str, int]:
    """The same job, stopped and gone on with: how it ended when it was stopped, what it said, its steps by then."""
    job, run = _longer_job(folder, "stopped"), folder / "stopped"
    process = start("run", job)
    while not step_lines(run):
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    steps = len(losses(run))
    done = velocity("run", job)
    assert done.returncode == 0, done.stderr
    return process.returncode, said, steps


def chain(folder: Path) -> tuple[Done[str], bool, Done[str], Done[str]]:
    """Two jobs, the second refused: the answer, and whether the first had begun. Mended, checked and run."""
    bad = folder / "bad.jsonl"
    write_jsonl(bad, [{"messages": []}])
    first = write_job(folder / "first.yaml", output=str(folder / "first"))
    second = write_job(
        folder / "second.yaml",
        model=str(folder / "first"),
        output=str(folder / "second"),
        data={"train": str(bad)},
    )
    refused, begun = velocity("run", first, second), (folder / "first").exists()
    write_jsonl(bad, ragged_rows(7))
    return refused, begun, velocity("check", first, second), velocity("run", first, second)


Jobs = Callable[[str], Any]


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds data and a tiny model."""
    folder = prepare_folder(tmp_path_factory.mktemp("jobs"), tied=True)
    write_jsonl(folder / "held_out.jsonl", ragged_rows(7))
    return folder


@pytest.fixture(name="jobs", scope="module")
def _jobs(folder: Path) -> Iterator[Jobs]:
    with done_ahead({work.__name__: partial(work, folder) for work in (trained_job, straight, stopped, chain)}) as jobs:
        yield jobs


@pytest.fixture(scope="module")
def trained(folder: Path, jobs: Jobs) -> Path:
    """The folder, with the finished job."""
    jobs("trained_job")
    return folder


def test_a_run_leaves_what_the_design_names(trained: Path) -> None:
    run = trained / "run"
    names = {path.name for path in run.iterdir()}
    assert {
        "job.yaml",
        "deepspeed.json",
        "deepspeed-origins.json",
        "environment.json",
        "metrics.jsonl",
        "checkpoints",
        "model",
        "report.html",
        "log.txt",
    } <= names
    fields = {"step", "loss", "tokens", "learning_rate", "grad_norm", "tokens_per_second", "seconds", "memory_gib"}
    assert fields <= set(step_lines(run)[0])
    assert list((run / "tensorboard").glob("events.*"))


def test_what_deepspeed_is_told_has_an_origin_each(trained: Path) -> None:
    told, why = (json.loads((trained / "run" / f"deepspeed{part}.json").read_text()) for part in ("", "-origins"))
    assert set(why) == leaves(told)
    assert why["zero_optimization.stage"] == "strategy.zero" and why["bf16.enabled"] == "strategy.precision"
    keys = {origin for origin in why.values() if not origin.startswith("Velocity: ") and origin != RAW}
    assert keys <= set(option_names())


def test_evaluation_sets_are_scored_before_during_and_after(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "run" / "metrics.jsonl").read_text().splitlines()]
    scored = [line["step"] for line in lines if "eval" in line]
    last = step_lines(trained / "run")[-1]["step"]
    assert scored[0] == 0
    assert scored[-1] == last
    assert len(scored) > 2
    evaluations = [line["eval"]["unseen"] for line in lines if "eval" in line]
    assert evaluations[-1]["perplexity"] < evaluations[0]["perplexity"]
    assert len({found["tokens"] for found in evaluations}) == 1


def test_the_job_file_says_where_each_value_came_from(trained: Path) -> None:
    text = (trained / "run" / "job.yaml").read_text()
    assert "zero: 3  # " in text and "job.yaml:" in text
    assert "micro: " in text and "# planner: " in text
    assert yaml.safe_load(text)["batch"]["micro"] >= 1


def test_the_model_loads_in_plain_transformers_with_tokenizer_template_and_card(trained: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = trained / "run" / "model"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    before = AutoModelForCausalLM.from_pretrained(trained / "model")
    assert tokenizer.chat_template
    assert "Trained on" in (folder / "README.md").read_text()
    assert all(parameter.numel() and torch.isfinite(parameter).all() for parameter in model.parameters())
    moved = [not torch.equal(one, other) for one, other in zip(model.parameters(), before.parameters(), strict=True)]
    assert all(moved), "all parameters are trained"


def test_a_finished_job_says_so_and_does_nothing(trained: Path, jobs: Jobs) -> None:
    for name in ("straight", "stopped", "chain"):
        jobs(name)  # nothing runs beside what is timed
    model = trained / "run" / "model" / "model.safetensors"
    before = model.stat().st_mtime_ns
    started = time.monotonic()
    again = velocity("run", trained / "job.yaml")
    assert time.monotonic() - started < 10
    assert again.returncode == 0
    assert "is complete" in again.stderr
    assert model.stat().st_mtime_ns == before
    assert "loading the model" not in again.stderr


def test_another_job_in_the_same_folder_is_refused_and_fresh_moves_the_old_aside(trained: Path) -> None:
    refused = velocity("run", trained / "job.yaml", "seed=1")
    assert refused.returncode == 2
    assert "seed: 0 → 1" in refused.stderr and "--fresh" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_show_and_check_tell_of_the_run(trained: Path) -> None:
    shown = velocity("show", trained / "run", "--json")
    summary = json.loads(shown.stdout)
    assert summary["state"]["state"] == "complete"
    assert summary["losses"] == [loss for _, loss, _ in losses(trained / "run")]
    checked = velocity("check", trained / "job.yaml")
    assert checked.returncode == 0, checked.stderr
    assert "trained on" in checked.stdout and "«" in checked.stdout


def test_a_stopped_run_exits_75_and_goes_on_to_the_same_losses(folder: Path, jobs: Jobs) -> None:
    status, said, steps = jobs("stopped")
    assert status == 75, said
    assert "run the same command to go on" in said
    assert 0 < steps < 80
    jobs("straight")
    assert losses(folder / "stopped") == losses(folder / "straight")


def test_a_chain_is_checked_whole_before_its_first_job_starts(folder: Path, jobs: Jobs) -> None:
    refused, begun, checked, done = jobs("chain")
    assert refused.returncode == 2, refused.stderr
    assert "bad.jsonl:1 field messages" in refused.stderr
    assert not begun
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.count("the run: 2 steps") == 2
    assert done.returncode == 0, done.stderr
    assert (folder / "second" / "model" / "model.safetensors").is_file()
