"""The request of a job on SageMaker: kept ones, and what follows from a launch section."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from tests.launch.sagemaker_jobs import (
    CASES,
    GOLDEN,
    HOME,
    IMAGE,
    KEY,
    LAUNCH,
    NETWORK,
    PRETRAIN,
    ROLE,
    SECRET,
    SFT,
    look,
    rendered,
    submission,
)
from velocity.config.launch import SageMakerConfig
from velocity.config.load import load_job
from velocity.errors import UserError
from velocity.launch.aws.names import BLANK
from velocity.launch.sagemaker import REQUEST, SageMakerLauncher

HEAVY = {"torch", "transformers", "deepspeed", "datasets", "boto3", "botocore", "fsspec"}


def request_of(launch: dict[str, Any], jobs: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    made = SageMakerLauncher(at=look).render(submission(HOME, jobs or [SFT], {**LAUNCH, **launch}))
    request: dict[str, Any] = json.loads(made[REQUEST])
    return request


@pytest.mark.parametrize("name", CASES)
def test_a_submission_is_the_kept_one(name: str):
    kept = {path.name: path.read_text("utf-8") for path in (GOLDEN / name).iterdir()}
    assert rendered(name) == kept, "if meant: python -m tests.launch.sagemaker_jobs"


def test_what_only_the_account_knows_is_a_blank():
    blanks = set(BLANK.findall("".join(rendered("blank").values())))
    assert {"<launch.role>", "<image of velocity image push>", "<the account's default bucket>"} <= blanks


@pytest.mark.parametrize("name", CASES)
def test_a_job_file_that_is_sent_is_a_job_file(name: str, tmp_path: Path):
    for file, text in rendered(name).items():
        if file != REQUEST:
            (tmp_path / file).write_text(text)
            job = load_job(tmp_path / file, target="sagemaker").job
            assert job.launch == submission(HOME, *CASES[name]).launch


def test_overrides_stand_in_the_file_and_not_among_the_arguments():
    made = submission(HOME, [{**SFT, "seed": 7}], LAUNCH)
    made = type(made)(made.name, made.folder, made.jobs, made.files, ("seed=7",))
    texts = SageMakerLauncher(at=look).render(made)
    assert yaml.safe_load(texts["1-sft.yaml"])["seed"] == 7
    arguments = json.loads(texts[REQUEST])["AlgorithmSpecification"]["ContainerArguments"]
    assert arguments == ["/opt/ml/input/data/job/1-sft.yaml"]


def test_a_later_job_starts_from_the_output_of_an_earlier_one():
    texts = rendered("chain-on-spot")
    first, second, third = (yaml.safe_load(text) for name, text in texts.items() if name != REQUEST)
    assert (second["model"]["path"], third["model"]["path"]) == (first["output"], second["output"])


def test_the_same_output_has_the_same_mirror_alone_and_in_a_chain():
    alone = yaml.safe_load(SageMakerLauncher(at=look).render(submission(HOME, [SFT], LAUNCH))["1-sft.yaml"])
    chain = yaml.safe_load(SageMakerLauncher(at=look).render(submission(HOME, [PRETRAIN, SFT], LAUNCH))["2-sft.yaml"])
    assert alone == chain, "a run that was begun alone goes on as one of a chain"
    assert alone["checkpoint"]["mirror"].startswith("s3://")


def test_two_outputs_of_one_name_have_two_mirrors():
    jobs = [SFT, {**SFT, "output": "/home/ann/other/sft"}]
    texts = SageMakerLauncher(at=look).render(submission(HOME, jobs, LAUNCH))
    first, second = (yaml.safe_load(text) for name, text in texts.items() if name != REQUEST)
    assert first["checkpoint"]["mirror"] != second["checkpoint"]["mirror"]
    assert first["output"] != second["output"]


def test_a_mirror_that_is_named_is_kept():
    job = {**SFT, "checkpoint": {"mirror": "s3://ours/runs/sft", "every": 5}}
    texts = SageMakerLauncher(at=look).render(submission(HOME, [job], LAUNCH))
    assert yaml.safe_load(texts["1-sft.yaml"])["checkpoint"] == {"mirror": "s3://ours/runs/sft", "every": 5}


@pytest.mark.parametrize(("instance", "own"), [("ml.p5.48xlarge", True), ("ml.p6-b200.48xlarge", True),
    ("ml.g5.xlarge", True), ("ml.c5.xlarge", False), ("ml.p3.2xlarge", False), ("ml.m5d.xlarge", True)])  # fmt: skip
def test_a_disk_is_asked_for_only_where_the_machine_has_none(instance: str, own: bool):
    resources = request_of({"instance": instance, "kms_key": KEY})["ResourceConfig"]
    assert ("VolumeSizeInGB" in resources, "VolumeKmsKeyId" in resources) == (not own, not own)


def test_spot_waits_three_times_as_long_as_it_runs():
    stopping = request_of({"spot": True, "max_hours": 2})["StoppingCondition"]
    assert stopping == {"MaxRuntimeInSeconds": 7200, "MaxWaitTimeInSeconds": 21600}


def test_nothing_is_compressed():
    assert request_of({})["OutputDataConfig"]["CompressionType"] == "NONE"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"instance": None}, "instance"),
        ({"instance": "p5.48xlarge"}, "instance"),
        ({"max_wait_hours": 3}, "max_wait_hours is of spot"),
        ({"spot": True, "max_hours": 4, "max_wait_hours": 3}, "is less than max_hours=4"),
        ({"spot": True, "warm_pool_minutes": 5}, "warm_pool_minutes does not go with spot"),
        ({"subnets": "subnet-1"}, "subnets go with security_groups"),
        ({"security_groups": "sg-1"}, "security_groups go with subnets"),
        ({"isolated": True, "nodes": 2}, "isolated goes with nodes: 1"),
        ({"isolated": True, "secrets": {"HF_TOKEN": SECRET}}, "isolated does not go with secrets"),
        ({"secrets": {"HF_TOKEN": "my-secret"}}, "HF_TOKEN is no ARN"),
        ({"secrets": {"HF-TOKEN": SECRET}}, "'HF-TOKEN' is no name of a variable"),
        ({"secrets": {"HF_TOKEN": SECRET}, "environment": {"HF_TOKEN": "x"}}, "stands in launch.environment, too"),
        ({"environment": {"1X": "a"}}, "'1X' is no name of a variable"),
        ({"max_hours": 700}, "max_hours"),
        ({"bucket": "Not_A_Bucket"}, "bucket"),
        ({"prefix": "/velocity"}, "prefix"),
    ],
)
def test_a_launch_section_that_contradicts_itself_is_refused(values: dict[str, Any], said: str):
    with pytest.raises(ValidationError, match=said):
        SageMakerConfig.model_validate({"kind": "sagemaker", "instance": "ml.c5.xlarge", **values})


def test_a_secret_in_place_of_its_arn_is_not_told():
    planted = "hf_" + "abcdefghij" * 4
    with pytest.raises(ValidationError) as error:
        SageMakerConfig(instance="ml.c5.xlarge", secrets={"HF_TOKEN": planted})
    assert planted not in str(error.value.errors()[0]["msg"])


@pytest.mark.parametrize(
    ("job", "launch", "where", "said"),
    [
        ({"model": "./nowhere"}, {}, "model", "no such model folder"),
        ({"data": {"train": "nowhere.jsonl"}}, {}, "data.train", "no such file or folder"),
        ({"data": {**SFT["data"], "chat_template": "nowhere.jinja"}}, {}, "data.chat_template", "no such file"),
        ({"checkpoint": {"mirror": "/mnt/mirror"}}, {}, "checkpoint.mirror", "no machine there has it"),
        ({"model": "company/base-model"}, {"isolated": True}, "model", "leaves no way to it"),
        ({"data": {"train": "gs://bucket/x.jsonl"}}, {"isolated": True}, "data.train", "leaves no way to it"),
        ({"checkpoint": {"mirror": "s3://a/b"}}, {"isolated": True}, "checkpoint.mirror", "does not go with"),
    ],
)
def test_an_input_that_does_not_get_there_is_refused(
    job: dict[str, Any], launch: dict[str, Any], where: str, said: str
):
    with pytest.raises(UserError, match=said) as error:
        SageMakerLauncher(at=look).render(submission(HOME, [{**SFT, **job}], {**LAUNCH, **launch}))
    assert error.value.problems[0].where == where


def test_what_lies_elsewhere_stays_as_it_is():
    job = {**PRETRAIN, "data": {"train": ["company/texts", "gs://bucket/x.jsonl", "s3://bucket/saved"]}}
    text = SageMakerLauncher(at=look).render(submission(HOME, [job], LAUNCH))["1-pretrain.yaml"]
    values = yaml.safe_load(text)
    assert values["model"]["path"] == "company/base-model"
    paths = [source["path"] for source in values["data"]["train"]]
    assert paths[:2] == ["company/texts", "gs://bucket/x.jsonl"]
    assert paths[2].startswith("/opt/ml/input/data/saved-")


def test_what_two_jobs_read_is_one_channel():
    request = request_of({}, [SFT, {**SFT, "output": "/home/ann/runs/other"}])
    assert len(request["InputDataConfig"]) == len(request_of({})["InputDataConfig"])


def test_files_that_are_read_once_from_the_front_are_streamed_and_weights_are_not():
    modes = {one["ChannelName"].rpartition("-")[0]: one["InputMode"] for one in request_of({})["InputDataConfig"]}
    assert modes == {
        "": "File", "model": "File", "chats.jsonl": "FastFile", "replay": "File",
        "unseen.jsonl.gz": "FastFile", "folder": "File",
    }  # fmt: skip


def test_several_nodes_do_not_choose_the_loopback():
    assert request_of({"nodes": 2, **NETWORK})["Environment"]["NCCL_SOCKET_IFNAME"] == "^docker0,lo"


def test_the_role_and_the_image_of_the_job_file_are_no_blanks():
    request = request_of({})
    assert (request["RoleArn"], request["AlgorithmSpecification"]["TrainingImage"]) == (ROLE, IMAGE)


def test_it_is_there_at_once():
    code = f"import json, sys, velocity.launch.sagemaker; print(json.dumps(sorted({HEAVY} & set(sys.modules))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
