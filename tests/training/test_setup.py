"""A training job's inputs: what is hashed over model and data, so that a run knows whether they are the same."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from tests.making import chat, flip, write_jsonl
from tests.running import claimed, inputs_of, planned, prepare_folder
from velocity.config.job import LoadedJob
from velocity.config.sections import AnyOptimizer
from velocity.config.training import TrainingJob
from velocity.data.corpus import Corpus
from velocity.data.loader import Share, TrainLoader
from velocity.distributed.ds_config import deepspeed_config
from velocity.errors import UserError
from velocity.start.resolve import check_ahead
from velocity.start.run import run_one
from velocity.training.setup import audit_sources, check_installed, prepare_inputs


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


KEY = "AKIA" + "IOSFODNN7EXAMPLE"
RIVERS = [f"Which river is number {n}?" for n in range(40)]
CLEAN = [chat(question, f"River {n} runs {n * n} miles to the sea.") for n, question in enumerate(RIVERS)]
HELD_OUT = [
    chat(
        "How does the oldest bridge of the town stand?",
        "It stands on seven piers of stone that the river has not moved.",
    )
]
# of two files, by line: a copy of a row of the other one, a key, text of the evaluation set
DIRTY = {
    "a.jsonl": [*CLEAN[:10], chat("What is the key?", f"It is {KEY}."), *CLEAN[10:20]],
    "b.jsonl": [*CLEAN[20:25], CLEAN[3], *CLEAN[25:], HELD_OUT[0]],
}
LEFT_OUT = [("a.jsonl", 11, "secrets"), ("b.jsonl", 6, "duplicates"), ("b.jsonl", 22, "overlap")]
DROP = "data.audit={duplicates: drop, overlap: drop, secrets: drop, oddities: drop}"


def job_over(folder: Path, tmp_path: Path, rows: Mapping[str, Any], *overrides: str) -> LoadedJob[TrainingJob]:
    paths = [str(write_jsonl(tmp_path / name, some)) for name, some in rows.items()]
    unseen = write_jsonl(tmp_path / "unseen.jsonl", HELD_OUT)
    train = json.dumps([{"path": path, "weight": 1 + number} for number, path in enumerate(paths)])
    cache = f"data.cache={tmp_path / 'cache'}"
    return planned(folder, tmp_path / "run", f"data.train={train}", f"data.eval={unseen}", cache, *overrides)


def batches(job: LoadedJob[TrainingJob]) -> list[list[list[int]]]:
    """The tokens of the first global batches."""
    corpus = Corpus(inputs_of(job).train, [source.weight for source in job.job.data.train])
    loader = TrainLoader(corpus, job.job, Share())
    return [[corpus[index].ids.tolist() for row in loader.global_batch(step) for index in row] for step in range(12)]


def test_rows_that_an_audit_drops_are_as_if_they_had_never_been_there(folder: Path, tmp_path: Path):
    dirty = job_over(folder, tmp_path / "dirty", DIRTY, DROP)
    clean = job_over(folder, tmp_path / "clean", {"a.jsonl": CLEAN[:20], "b.jsonl": CLEAN[20:]})
    assert batches(dirty) == batches(clean)
    stores = inputs_of(dirty).train
    assert [store.stats["audited"] for store in stores] == [1, 2]
    assert [store.stats["records"] - store.stats["rejected"] for store in stores] == [20, 20]


def test_what_is_dropped_stands_in_the_run_folder_with_its_place_and_reason(folder: Path, tmp_path: Path):
    run = claimed(job_over(folder, tmp_path, DIRTY, DROP))
    rejected = [json.loads(line) for line in run.rejected.read_text().splitlines()]
    assert [(Path(one["file"]).name, one["line"], one["kind"]) for one in rejected] == LEFT_OUT
    assert [one["with"] and Path(one["with"]).name for one in rejected] == [None, "a.jsonl:4", "unseen.jsonl:1"]
    assert rejected[0]["reason"] == "an AWS key"
    known = json.loads(run.audit.read_text())
    assert known["counts"] == {"duplicates": 1, "overlap": 2, "secrets": 1, "oddities": 0}  # both sides of the overlap
    assert known["dropped"] == {"duplicates": 1, "overlap": 1, "secrets": 1, "oddities": 0}
    assert known["rows"] == {"train": 43, "eval": 1}
    assert len(known["findings"]) == 4
    assert KEY not in run.rejected.read_text() + run.audit.read_text()


def test_what_is_only_reported_is_not_looked_for_and_shown_if_a_check_has_found_it(folder: Path, tmp_path: Path):
    job = job_over(folder, tmp_path, DIRTY)
    inputs = inputs_of(job)
    assert inputs.audit is not None and inputs.audit.kinds == ()
    assert not claimed(job).audit.exists()
    audit_sources(job.job, inputs.sources, lambda text: None, ("secrets", "overlap"))  # as a check does
    known = json.loads(claimed(job).audit.read_text())
    assert known["counts"] == {"overlap": 2, "secrets": 1}
    assert not (tmp_path / "run" / "rejected.jsonl").exists()
    assert inputs_of(job).hash == inputs.hash


def test_a_run_goes_on_with_other_settings_of_the_audit_as_long_as_the_same_rows_are_left_out(
    folder: Path, tmp_path: Path
):
    def over(*overrides: str) -> LoadedJob[TrainingJob]:
        return job_over(folder, tmp_path, DIRTY, *overrides)

    claimed(over("data.audit.secrets=drop"))
    claimed(over("data.audit={secrets: drop, oddities: drop, duplicates: off}"))  # there is nothing odd
    for other in ("data.audit.secrets=report", "data.audit={secrets: drop, duplicates: drop}"):
        with pytest.raises(UserError, match="the output folder belongs to another job; different: the content"):
            claimed(over(other))


def test_a_secret_that_is_an_error_ends_the_job_before_it_is_tokenised(folder: Path, tmp_path: Path):
    with pytest.raises(UserError, match="1 rows hold what is not to be trained on: an AWS key") as caught:
        inputs_of(job_over(folder, tmp_path, DIRTY, "data.audit.secrets=error"))
    assert caught.value.problems[0].where == f"{tmp_path}/a.jsonl:11"
    assert not (tmp_path / "cache" / "sequences").exists()


def test_where_everything_is_dropped_the_job_ends_and_names_the_setting(folder: Path, tmp_path: Path):
    with pytest.raises(UserError, match="no record to train on: 1 records were rejected") as caught:
        inputs_of(job_over(folder, tmp_path, {"a.jsonl": DIRTY["a.jsonl"][10:11]}, DROP))
    assert caught.value.problems[0].fix == "check data.audit"
