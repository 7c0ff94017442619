"""The request of a job on SageMaker: kept ones, and what follows from a launch section."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.launch.sagemaker.jobs import (
    CASES,
    EVALUATE,
    GOLDEN,
    HOME,
    IMAGE,
    KEY,
    LAUNCH,
    NETWORK,
    PRETRAIN,
    ROLE,
    SFT,
    look,
    rendered,
    submission,
)
from velocity.config.load import load_job
from velocity.errors import UserError
from velocity.launch.launcher import Submitted
from velocity.launch.sagemaker.launcher import REQUEST, SageMakerLauncher
from velocity.launch.sagemaker.names import BLANK

BASE = {"model": "company/base-model"}
HEAVY = {"torch", "transformers", "deepspeed", "datasets", "boto3", "botocore", "fsspec"}


def request_of(launch: dict[str, Any], jobs: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    made = SageMakerLauncher(at=look).render(submission(HOME, jobs or [SFT], {**LAUNCH, **launch}))
    request: dict[str, Any] = json.loads(made[REQUEST])
    return request


@pytest.mark.parametrize("name", CASES)
def test_a_submission_is_the_kept_one(name: str):
    kept = {path.name: path.read_text("utf-8") for path in (GOLDEN / name).iterdir()}
    assert rendered(name) == kept, "if meant: python -m tests.launch.sagemaker.jobs"


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


def test_all_that_an_evaluation_reads_gets_there():
    job = yaml.safe_load(rendered("evaluation")["2-evaluate.yaml"])
    said = job["data"]["eval"]["said"]
    assert said["path"].startswith("/opt/ml/input/data/chats.jsonl-")
    assert said["function"] == "/opt/ml/input/data/job/2-score.py:score", "a file beside the job file"
    assert job["retrieval"]["path"].startswith("/opt/ml/input/data/") and job["retrieval"]["path"].endswith("/**/*.md")
    assert job["benchmarks"]["folder"].startswith("/opt/ml/input/data/tasks-")
    assert job["checkpoint"]["mirror"].startswith("s3://"), "finished rows are kept there"


@pytest.mark.parametrize(
    ("changes", "where", "said"),
    [
        ({"retrieval": {"path": "nowhere.jsonl"}}, "retrieval.path", "no such file or folder"),
        ({"retrieval": {"path": "@chats.jsonl", "method": "embeddings", "model": "./e5"}}, "retrieval.model", "no "),
        ({"benchmarks": {"tasks": ["ours"], "folder": "nowhere"}}, "benchmarks.folder", "no such folder"),
        ({"data": {"eval": {"a": {"path": "@chats.jsonl", "kind": "answers", "function": "x.py:y"}}}},
         "data.eval.a.function", "no such file"),
    ],
)  # fmt: skip
def test_what_an_evaluation_reads_and_does_not_get_there_is_refused(changes: dict[str, Any], where: str, said: str):
    with pytest.raises(UserError, match=said) as error:
        SageMakerLauncher(at=look).render(submission(HOME, [{**EVALUATE, **BASE, **changes}], LAUNCH))
    assert error.value.problems[0].where == where


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
    code = "import json, sys, velocity.launch.sagemaker.launcher; "
    code += f"print(json.dumps(sorted({HEAVY} & set(sys.modules))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_a_job_that_is_over_is_not_stopped_again():
    stopped: list[str] = []

    class Over:
        def describe_training_job(self, TrainingJobName: str) -> dict[str, Any]:
            return {"TrainingJobStatus": "Completed", "SecondaryStatus": "Completed"}

        def stop_training_job(self, TrainingJobName: str) -> None:
            stopped.append(TrainingJobName)

    submitted = Submitted("x", "sagemaker", "x", Path("x"), (), 0.0, {"region": None})
    SageMakerLauncher(lambda region: lambda name: Over()).cancel(submitted)
    assert stopped == []
