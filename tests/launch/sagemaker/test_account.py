"""What an account lacks is told before anything is sent; what is sent lies there once, private, without a secret."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.launch.sagemaker.jobs import SFT, prepare, submission
from tests.sagemaker_account import ACCOUNT, KEY, PLANTED, REGION, SECRET_KEY, Account, account
from velocity.errors import UserError, VelocityError
from velocity.launch import submitted as registry
from velocity.launch.launcher import Submission
from velocity.launch.sagemaker.launcher import REQUEST, SageMakerLauncher
from velocity.launch.sagemaker.secrets import fetch_secrets, variables_of

BUCKET = f"velocity-{REGION}-{ACCOUNT}"
JOB = {**SFT, "data": {"train": "@chats.jsonl", "eval": "@folder", "chat_template": "@template.jinja"}}


@pytest.fixture(name="aws")
def _aws() -> Iterator[Account]:
    with account() as made:
        yield made


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    return prepare(tmp_path)


def job(folder: Path, aws: Account, changes: dict[str, Any] | None = None, **launch: Any) -> Submission:
    """A job on its way, its folder written."""
    whole = {"kind": "sagemaker", "instance": "ml.g6.12xlarge", "role": aws.role, "image": aws.image, **launch}
    made = submission(folder, [{**JOB, **(changes or {})}], {name: value for name, value in whole.items() if value})
    registry.write_files(made.folder, dict(SageMakerLauncher().render(made)))
    return made


def submit(made: Submission) -> dict[str, Any]:
    """The request that was sent."""
    launcher = SageMakerLauncher()
    launcher.check(made)
    launcher.submit(made)
    request: dict[str, Any] = json.loads((made.folder / REQUEST).read_text())
    return request


WRONG: list[tuple[dict[str, Any], dict[str, Any], str, str]] = [
    ({"role": None}, {}, "launch.role", "'launch.role' is missing"),
    ({"role": "no-such-role"}, {}, "launch.role", "there is no role no-such-role"),
    ({"role": f"arn:aws:iam::{ACCOUNT}:role/no-such-role"}, {}, "launch.role", "there is no role no-such-role"),
    ({"role": "arn:aws:iam::999999999999:role/velocity-job"}, {}, "launch.role", "account 999999999999's"),
    ({"role": "arn:aws:iam::12:user/x"}, {}, "launch.role", "is not of the form"),
    ({"role": "lambda-only"}, {}, "launch.role", "SageMaker may not take on"),
    ({"image": None}, {}, "launch.image", "none was pushed"),
    ({"image": "python:3.12"}, {}, "launch.image", "is no image in ECR"),
    ({"image": f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/velocity:9"}, {}, "launch.image", "there is no image"),
    ({"image": f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/other:1"}, {}, "launch.image", "there is no image"),
    ({"image": f"{ACCOUNT}.dkr.ecr.us-west-2.amazonaws.com/velocity:1"}, {}, "launch.image", "lies in us-west-2"),
    ({"bucket": "no-such-bucket"}, {}, "launch.bucket", "there is no bucket no-such-bucket"),
    ({"instance": "ml.p5.49xlarge"}, {}, "launch.instance", "ml.p5.49xlarge is nothing that SageMaker has"),
    ({}, {"data": {"train": "s3://no-such-bucket/x.jsonl"}}, "data.train", "there is no bucket no-such-bucket"),
    ({}, {"data": {"train": "@*.parquet"}}, "data.train", "nothing to read in"),
    ({"environment": {"NOTE": "x" * 513}}, {}, "launch.environment", "more than 512"),
]


@pytest.mark.parametrize(("launch", "changes", "where", "said"), WRONG)
def test_what_is_missing_is_one_clear_error_and_nothing_is_sent(
    folder: Path, aws: Account, launch: dict[str, Any], changes: dict[str, Any], where: str, said: str
):
    with pytest.raises(UserError, match=said) as error:
        SageMakerLauncher().check(job(folder, aws, changes, **launch))
    assert [problem.where for problem in error.value.problems] == [where]
    assert aws.client("s3").list_buckets()["Buckets"] == []
    assert aws.client("sagemaker").list_training_jobs()["TrainingJobSummaries"] == []


def test_no_credentials_are_one_clear_error(folder: Path, aws: Account, monkeypatch: pytest.MonkeyPatch):
    made = job(folder, aws)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(folder / "none"))
    with pytest.raises(UserError, match="no credentials for AWS"):
        SageMakerLauncher().check(made)


def test_no_region_is_one_clear_error(folder: Path, aws: Account, monkeypatch: pytest.MonkeyPatch):
    made = job(folder, aws)
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(folder / "none"))
    with pytest.raises(UserError, match="no region is known"):
        SageMakerLauncher().check(made)


def test_a_service_that_does_not_answer_is_an_error_without_a_traceback(
    folder: Path, aws: Account, monkeypatch: pytest.MonkeyPatch
):
    made = job(folder, aws)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(VelocityError, match="AWS does not answer"):
        SageMakerLauncher().check(made)


def test_an_empty_place_in_s3_is_told(folder: Path, aws: Account):
    aws.client("s3").create_bucket(Bucket="corpus", CreateBucketConfiguration={"LocationConstraint": REGION})
    with pytest.raises(UserError, match="nothing lies at s3://corpus/x/"):
        SageMakerLauncher().check(job(folder, aws, {"data": {"train": "s3://corpus/x/*.jsonl"}}))


def test_a_role_may_be_given_by_its_name_and_an_image_is_pinned(folder: Path, aws: Account):
    request = submit(job(folder, aws, role="velocity-job"))
    assert request["RoleArn"] == aws.role
    assert request["AlgorithmSpecification"]["TrainingImage"] == aws.pinned


def test_the_default_bucket_is_made_private_and_encrypted(folder: Path, aws: Account):
    submit(job(folder, aws))
    s3 = aws.client("s3")
    closed = s3.get_public_access_block(Bucket=BUCKET)["PublicAccessBlockConfiguration"]
    assert len(closed) == 4
    assert all(closed.values())
    rules = s3.get_bucket_encryption(Bucket=BUCKET)["ServerSideEncryptionConfiguration"]["Rules"]
    assert rules[0]["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"


def test_channels_show_what_lies_here(folder: Path, aws: Account):
    request = submit(job(folder, aws))
    shown = {}
    for channel in request["InputDataConfig"]:
        prefix = channel["DataSource"]["S3DataSource"]["S3Uri"].removeprefix(f"s3://{BUCKET}/")
        shown[channel["ChannelName"].rpartition("-")[0]] = {
            key.removeprefix(prefix) for key in aws.keys(BUCKET, prefix)
        }
    assert shown == {
        "": {"1-sft.yaml", "1-template.jinja"},
        "model": {"config.json", "model.safetensors"},
        "chats.jsonl": {"chats.jsonl"},
        "folder": {"part-1.jsonl", "more/part-2.jsonl"},
    }


def test_what_has_not_changed_is_not_sent_again_and_what_has_lies_elsewhere(
    folder: Path, aws: Account, capsys: pytest.CaptureFixture[str]
):
    first = submit(job(folder, aws))
    assert "uploading 2 file(s)" in capsys.readouterr().err
    again = replace(job(folder, aws, {"output": "/home/ann/runs/two"}), name="two")
    assert submit(again)["InputDataConfig"][1:] == first["InputDataConfig"][1:]
    assert "uploading" not in capsys.readouterr().err
    (folder / "chats.jsonl").write_text("{}\n")
    third = submit(replace(job(folder, aws, {"output": "/home/ann/runs/three"}), name="three"))
    changed = [one != other for one, other in zip(first["InputDataConfig"], third["InputDataConfig"], strict=True)]
    assert changed == [True, False, True, False]
    assert "uploading 1 file(s)" in capsys.readouterr().err


def test_a_large_file_goes_in_parts(folder: Path, aws: Account, monkeypatch: pytest.MonkeyPatch):
    from velocity.checkpoints.store import S3Store

    monkeypatch.setattr(S3Store, "part_bytes", 5 << 20)
    (folder / "model" / "model.safetensors").write_bytes(bytes(11 << 20))
    request = submit(job(folder, aws))
    prefix = request["InputDataConfig"][1]["DataSource"]["S3DataSource"]["S3Uri"].removeprefix(f"s3://{BUCKET}/")
    there = aws.client("s3").head_object(Bucket=BUCKET, Key=f"{prefix}model.safetensors")
    assert there["ContentLength"] == 11 << 20
    assert there["ETag"].strip('"').endswith("-3"), "three parts"


def test_no_secret_lies_in_what_is_sent(folder: Path, aws: Account):
    made = job(folder, aws, secrets={"HF_TOKEN": aws.secret})
    request = submit(made)
    assert fetch_secrets(request["Environment"]) == {"HF_TOKEN": PLANTED}
    sent = b"".join(aws.objects(BUCKET).values()) + b"".join(file.read_bytes() for file in made.folder.iterdir())
    for secret in (PLANTED, KEY, SECRET_KEY):
        assert secret.encode() not in sent
    assert aws.secret.encode() in sent, "its address is"


def test_a_secret_in_the_environment_section_is_refused(folder: Path, aws: Account):
    with pytest.raises(UserError, match=r"request\.json would hold") as error:
        SageMakerLauncher().check(job(folder, aws, environment={"NOTE": f"use {KEY}"}))
    assert KEY not in str(error.value)


def test_a_run_that_a_job_still_writes_is_not_given_to_another(folder: Path, aws: Account):
    submit(job(folder, aws))
    aws.client("s3")
    _still_going(aws, "sft-1125-221503")
    with pytest.raises(UserError, match="the training job sft-1125-221503 writes the run"):
        SageMakerLauncher().check(replace(job(folder, aws), name="again"))


def test_the_same_output_goes_on_and_fresh_begins_another(folder: Path, aws: Account):
    first = submit(job(folder, aws))
    assert first["TrainingJobName"] == "sft-1125-221503"
    mirrors = []
    for name, fresh in (("again", False), ("anew", True), ("goes-on", False)):
        made = replace(job(folder, aws), name=name)
        object.__setattr__(made, "fresh", fresh)
        sent = SageMakerLauncher().submit(made)
        mirrors.append(str(sent.mirrors[0]))
    assert [url.rpartition("/")[2] for url in mirrors] == ["1", "2", "2"]


def test_what_sagemaker_refuses_is_told_in_its_words(folder: Path, aws: Account):
    def refusing(region: str | None) -> Any:
        from botocore.exceptions import ClientError

        said = {"Error": {"Code": "ResourceLimitExceeded", "Message": "The account-level service limit is 0 Instances"}}

        class Refusing:
            meta = aws.client("sagemaker").meta

            def create_training_job(self, **request: Any) -> None:
                raise ClientError(said, "CreateTrainingJob")

        return lambda name: Refusing() if name == "sagemaker" else aws.client(name)

    with pytest.raises(UserError, match="the account-level service limit is 0|The account-level") as error:
        SageMakerLauncher(refusing).submit(job(folder, aws))
    assert "quota" in error.value.problems[0].fix


def test_a_secret_may_be_one_of_several_values(aws: Account):
    several = aws.client("secretsmanager").create_secret(Name="all", SecretString=json.dumps({"A": "1", "B": "2"}))
    environment = variables_of({"HF_TOKEN": aws.secret, "B": several["ARN"]})
    assert fetch_secrets({**environment, "OTHER": "x"}) == {"HF_TOKEN": PLANTED, "B": "2"}
    with pytest.raises(UserError, match="none is named C") as error:
        fetch_secrets(variables_of({"C": several["ARN"]}))
    assert '"1"' not in str(error.value)


def test_a_secret_that_is_not_to_be_had_is_told_by_its_address(aws: Account):
    gone = aws.secret.replace("hub", "gone")
    with pytest.raises(UserError, match="the secret for HF_TOKEN is not to be had") as error:
        fetch_secrets(variables_of({"HF_TOKEN": gone}))
    assert error.value.problems[0].where == gone


def _still_going(aws: Account, name: str) -> None:
    """moto's jobs are over at once; this one is not."""
    from moto.backends import get_backend

    backend: Any = get_backend("sagemaker")
    found = backend[ACCOUNT][REGION].training_jobs[name]
    found.training_job_status, found.secondary_status = "InProgress", "Training"
