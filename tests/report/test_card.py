"""The data of a run: what it was, what was left out of it, what an audit found in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.report.runs_made import evaluate_run, generate_run, reject, training_run
from velocity.report.card import data_card
from velocity.report.facts import read_run


def test_sources_are_told_with_their_counts_and_the_share_that_is_trained_on(tmp_path: Path):
    card = data_card(read_run(training_run(tmp_path / "run").path))
    assert card.sources is not None
    train, unseen = card.sources.rows
    assert train[:4] == ["train", str(tmp_path / "corpus" / "train.jsonl"), "302", "300"]
    assert train[5:] == ["2", "1", "50.0 %"]
    assert unseen[0] == "unseen"


def test_licences_come_from_the_manifest_beside_a_source(tmp_path: Path):
    card = data_card(read_run(training_run(tmp_path / "run").path))
    assert card.licences is not None
    assert card.licences.rows == [["cwe-corpus==4.1", "CC-BY-4.0"]]


def test_lengths_are_a_histogram_as_long_as_their_store_is_on_the_disk(tmp_path: Path):
    run = training_run(tmp_path / "run")
    figure = data_card(read_run(run.path)).lengths
    assert figure is not None
    assert figure.caption == "300 sequences; dashed: data.sequence_length 256"
    shutil.rmtree(tmp_path / "cache")
    assert data_card(read_run(run.path)).lengths is None


def test_records_that_were_left_out_are_counted_by_reason_and_the_first_are_shown(tmp_path: Path):
    run = training_run(tmp_path / "run")
    reject(run)
    counts, first = data_card(read_run(run.path)).rejected
    assert counts.rows == [["no turn of the assistant", "1"], ["empty", "1"]]
    assert first.rows[0] == ["train.jsonl:6", "messages", "no turn of the assistant"]


def test_an_audit_is_told_and_its_absence_as_well(tmp_path: Path):
    run = training_run(tmp_path / "run")
    assert data_card(read_run(run.path)).audit is None
    reject(run)
    audit = data_card(read_run(run.path)).audit
    assert audit is not None
    assert audit[0].rows[0] == ["exact and near duplicates", "1", "1"]
    assert audit[0].note == "Rows looked at: 302 of train, 12 of unseen."
    assert audit[1].rows == [["duplicates", "train train.jsonl:12", "the same text", "train.jsonl:3"]]


def test_prompts_of_a_generate_run_are_its_data(tmp_path: Path):
    run = generate_run(tmp_path / "run", [("a", "b")])
    told = {"store": "gone", "records": 4, "prompts": 4, "tokens": 391, "rejected": 0, "files": ["p.jsonl", "q.jsonl"]}
    run.environment.write_text(json.dumps({"prompts": told}))
    card = data_card(read_run(run.path))
    assert card.sources is not None
    assert card.sources.rows == [["prompts", "p.jsonl (2 files)", "4", "4", "391", "0", "–", "–"]]


def test_sets_of_an_evaluate_run_are_its_data(tmp_path: Path):
    card = data_card(read_run(evaluate_run(tmp_path / "run", 0.5).path))
    assert card.sources is not None
    assert card.sources.rows == [["seen", "seen.jsonl", "41", "40", "–", "1", "–", "–"]]


def test_what_is_of_no_known_shape_is_left_out(tmp_path: Path):
    run = training_run(tmp_path / "run")
    run.environment.write_text(json.dumps({"data": {"train": "x", "eval": ["y"]}}))
    run.rejected.write_text("not json\n[1]\n")
    (run.path / "audit.json").write_text("[]")
    assert not data_card(read_run(run.path))
