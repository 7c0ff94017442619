"""A training job's inputs: what is hashed over model and data, so that a run knows whether they are the same."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from tests.making import chat, flip, write_jsonl
from tests.running import inputs_of, planned, prepare_folder
from velocity.config.sections import AnyOptimizer
from velocity.distributed.ds_config import deepspeed_config
from velocity.errors import UserError
from velocity.start.resolve import check_ahead
from velocity.start.run import run_one
from velocity.training.setup import check_installed, prepare_inputs


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, data, and their cache: no test changes them."""
    return prepare_folder(tmp_path_factory.mktemp("setup"))


def test_the_whole_content_of_the_model_is_hashed_where_a_reference_is_kept_and_there_alone(tmp_path: Path):
    prepare_folder(tmp_path)
    pairs = write_jsonl(tmp_path / "pairs.jsonl", [{"prompt": "Why?", "chosen": "So.", "rejected": "No."}])

    def content(*overrides: str) -> str | None:
        job = planned(tmp_path, tmp_path / "run", f"data.train={pairs}", "task=preference", *overrides)
        return inputs_of(job).model_content

    first = content()
    assert first and content("preference.kind=kto") == first
    assert content("preference.reference=live") is None
    assert content("preference.kind=orpo") is None
    assert inputs_of(planned(tmp_path, tmp_path / "run")).model_content is None
    path = tmp_path / "model" / "model.safetensors"
    weights = bytearray(path.read_bytes())
    weights[len(weights) // 2] ^= 1
    path.write_bytes(weights)
    assert content() not in (first, None)


def copy_model(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder / "model", tmp_path / "model"))


def test_inputs_hash_alike_wherever_and_whenever_the_model_was_copied(folder: Path, tmp_path: Path):
    model = copy_model(folder, tmp_path)
    os.utime(model / "model.safetensors", (1, 1))
    job = planned(folder, tmp_path / "run")
    assert prepare_inputs(job.job, model, lambda text: None).hash == inputs_of(job).hash


def test_inputs_hash_differently_when_the_model_or_the_data_change(folder: Path, tmp_path: Path):
    model, job = copy_model(folder, tmp_path), planned(folder, tmp_path / "run")
    flip(model / "model.safetensors", -1)
    assert prepare_inputs(job.job, model, lambda text: None).hash != inputs_of(job).hash
    other = planned(folder, tmp_path / "run", f"data.train={write_jsonl(tmp_path / 'a.jsonl', [chat('Why?', 'So.')])}")
    assert inputs_of(other).hash != inputs_of(job).hash


def test_the_run_folder_is_told_of_every_source_and_of_the_records_that_it_left_out(folder: Path, tmp_path: Path):
    bad = write_jsonl(tmp_path / "bad.jsonl", [chat("Why?", "So."), {"messages": "no"}])
    job = planned(folder, tmp_path / "run", f"data.eval={bad}", "data.on_bad_record=skip", "launch.processes=2")
    inputs = inputs_of(job)
    made = inputs.manifest(job.job)
    assert (made.hash, made.deepspeed) == (inputs.hash, deepspeed_config(job.job, 2))
    assert made.facts["model_folder"] == str(folder / "model")
    assert [entry["records"] for entry in made.facts["data"]["train"]] == [60]
    assert {name: [entry["path"] for entry in entries] for name, entries in made.facts["data"]["eval"].items()} == {
        "eval": [str(bad)]
    }
    assert [json.loads(line)["line"] for file in made.rejected for line in file.read_text().splitlines()] == [2]


OPTIMIZERS = ("adamw", "sgd", "muon", "adafactor", "adamw_8bit", "lion")
OF_BITSANDBYTES = ("adamw_8bit", "lion")


def optimizer_of(kind: str) -> AnyOptimizer:
    made: AnyOptimizer = TypeAdapter(AnyOptimizer).validate_python({"kind": kind, "learning_rate": 1e-3})
    return made


@pytest.fixture(name="without_bitsandbytes")
def _without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "bitsandbytes" else real(name))


@pytest.mark.usefixtures("without_bitsandbytes")
@pytest.mark.parametrize("kind", OF_BITSANDBYTES)
def test_an_optimizer_whose_package_is_absent_is_refused_with_the_command_that_installs_it(kind: str):
    with pytest.raises(UserError) as caught:
        check_installed(optimizer_of(kind))
    assert str(caught.value).splitlines() == [
        f"optimizer.kind={kind} needs bitsandbytes, which is not installed",
        "  where: optimizer.kind",
        "  fix:   pip install 'ProfoundVelocity[quantised]'",
    ]


@pytest.mark.usefixtures("without_bitsandbytes")
@pytest.mark.parametrize("kind", OF_BITSANDBYTES)
def test_a_job_with_it_is_refused_at_its_line_and_leaves_no_run(folder: Path, tmp_path: Path, kind: str):
    optimizer = f"optimizer={{kind: {kind}, learning_rate: 1e-3}}"
    job = planned(folder, tmp_path / "run", optimizer, "strategy.zero=1")
    for start in (lambda: check_ahead([job], fresh=False), lambda: run_one(job, fresh=False)):
        with pytest.raises(UserError, match=f"optimizer.kind={kind} needs bitsandbytes") as caught:
            start()
        assert caught.value.problems[0].where.endswith("optimizer.kind")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("without_bitsandbytes")
def test_the_others_need_no_package():
    for kind in set(OPTIMIZERS) - set(OF_BITSANDBYTES):
        check_installed(optimizer_of(kind))


def test_with_the_package_none_is_refused():
    for kind in OPTIMIZERS:
        check_installed(optimizer_of(kind))
