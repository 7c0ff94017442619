"""Paths that lead nowhere in the pods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.launch.kubernetes.jobs import MIRROR, evaluate, generate, sft, submission
from velocity.errors import UserError
from velocity.launch.kubernetes.inputs import check_inputs


def refused(*jobs: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        check_inputs(submission(*jobs).jobs)
    return str(caught.value)


def test_without_a_claim_inputs_come_from_addresses_and_the_run_goes_to_one():
    check_inputs(submission(sft()).jobs)
    assert "checkpoint.mirror" in refused(sft(checkpoint={}))
    assert "checkpoint.mirror" in refused(sft(checkpoint={"mirror": "/mnt/mirror"}))
    for path in ("corpus/chats.jsonl", "/data/chats.jsonl", "chats/*.jsonl", "~/chats", "file:///data/chats.jsonl"):
        assert f"data.train: {path}" in refused(sft(data={"train": path}))
    assert "data.eval.held: held.csv" in refused(sft(data={"train": "s3://b/a.jsonl", "eval": {"held": "held.csv"}}))
    assert "model: ./smol" in refused(sft(model="./smol"))
    assert "data.chat_template: chatml" in refused(sft(data={"train": "s3://b/a.jsonl", "chat_template": "chatml"}))


def test_a_folder_here_that_is_named_like_a_hub_id_is_no_hub_id(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_inputs(submission(sft(model="models/smol")).jobs)
    Path("models/smol").mkdir(parents=True)
    assert "model: models/smol" in refused(sft(model="models/smol"))


def test_without_a_claim_no_job_reads_what_an_earlier_one_has_made():
    assert "model: runs/sft is the output of an earlier job" in refused(sft(), sft(model="runs/sft", output="runs/b"))


def test_with_a_claim_what_lies_outside_of_it_is_refused():
    claim = {"claim": "files", "mount": "/files"}
    lying = {"checkpoint": {}, "model": "models/smol"}
    check_inputs(submission(sft(claim, **lying, data={"train": "/files/a.jsonl"}), generate(claim)).jobs)
    assert "data.train: /home/me/a.jsonl" in refused(sft(claim, **lying, data={"train": "/home/me/a.jsonl"}))
    assert "data.train: ../a.jsonl" in refused(sft(claim, **lying, data={"train": "../a.jsonl"}))
    assert "output: ~/runs" in refused(sft(claim, **{**lying, "output": "~/runs"}))


def test_all_that_an_evaluation_reads_lies_on_the_claim_or_without_one_at_addresses():
    claim = {"claim": "files", "mount": "/files"}
    check_inputs(submission(sft(claim), evaluate(claim)).jobs)
    outside = {"retrieval": {"path": "../train.jsonl"}, "benchmarks": {"tasks": ["ours"], "folder": "/tasks"}}
    said = refused(evaluate(claim, **outside))
    assert "retrieval.path: ../train.jsonl is on no disk" in said and "benchmarks.folder: /tasks is on no disk" in said

    without: dict[str, Any] = {"model": "HuggingFaceTB/SmolLM2-135M", "checkpoint": {"mirror": MIRROR}}
    said = refused(evaluate(**without))
    assert "data.eval.unseen" not in said
    assert "data.eval.said: corpus/chats.jsonl is no address" in said
    assert "data.eval.said.function: scores/mine.py is a file, which is read from a disk" in said
    assert "benchmarks.folder: tasks is a folder, which is read from a disk" in said
    plain: dict[str, Any] = {
        "data": {"eval": {"unseen": "s3://bucket/unseen.jsonl"}},
        "retrieval": {"path": "s3://bucket/train.jsonl"},
    }
    check_inputs(submission(evaluate(**without, **plain, benchmarks={"tasks": ["arc_easy"]})).jobs)
