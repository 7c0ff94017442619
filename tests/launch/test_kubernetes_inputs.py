"""Launch sections and paths that a cluster could not use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.launch.kubernetes_jobs import GPUS, generate, sft, submission
from velocity.config.launch import KubernetesConfig
from velocity.errors import UserError
from velocity.launch.kubernetes_inputs import check_inputs


@pytest.mark.parametrize(
    ("launch", "named"),
    [
        ({"memory": "200GB"}, "memory"), ({"memory": "0"}, "memory"), ({"shared_memory": "lots"}, "shared_memory"),
        ({"namespace": "Team_A"}, "namespace"), ({"namespace": "a" * 64}, "namespace"), ({"claim": "a..b"}, "claim"),
        ({"service_account": "A"}, "service_account"), ({"secrets": ["my secret"]}, "secrets"),
        ({"node_selector": {"a b": "c"}}, "node_selector"), ({"node_selector": {"a": "-c"}}, "node_selector"),
        ({"tolerations": [{"operator": "Equal"}]}, "operator Equal needs a key"),
        ({"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}, "takes no value"),
        ({"efa": 1}, "huge pages"), ({"mount": "shared"}, "mount"), ({"mount": "/a/../b"}, "mount"),
        ({"mount": "/usr/share"}, "hides"), ({"environment": {"VELOCITY_JOB": "a"}}, "VELOCITY_JOB"),
        ({"environment": {"a-b": "c"}}, "a-b"), ({"gpus_per_node": -1}, "gpus_per_node"), ({"user": -1}, "user"),
    ],
)  # fmt: skip
def test_a_launch_section_that_a_cluster_would_refuse_is_refused_here(launch: dict[str, Any], named: str):
    with pytest.raises(ValidationError, match=named):
        KubernetesConfig.model_validate(launch)


def test_a_launch_section_with_everything_is_taken():
    KubernetesConfig.model_validate(GPUS)


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
