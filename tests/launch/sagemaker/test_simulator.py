"""The simulator does what SageMaker does with a request: otherwise nothing that runs on it says anything.

Its containers run small programs here, in place of Velocity.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from tests.checkpoints.mirrored import wait_for
from tests.sagemaker_account import REGION
from tests.sagemaker_service import Service, simulator
from tests.sagemaker_simulator import TrainingJob
from velocity.launch.sagemaker import logs

BUCKET = "bucket"
WAITS = "import time; print('waiting', flush=True); time.sleep(600)"
SAVES = """
import pathlib, signal, sys, time
def stop(*_):
    time.sleep(1); pathlib.Path('/opt/ml/model/saved.txt').write_text('saved'); sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print('waiting', flush=True)
time.sleep(600)
"""
COUNTS = """
import json, pathlib, socket, sys, time
folder = pathlib.Path('/opt/ml/checkpoints')
host = json.loads(pathlib.Path('/opt/ml/input/config/resourceconfig.json').read_text())['current_host']
found = sorted(path.name for path in folder.iterdir())
print('found', found, 'tmp', sorted(path.name for path in pathlib.Path('/tmp').iterdir()), flush=True)
pathlib.Path('/tmp/left').write_text('x')
(folder / f'{host}-{len(found)}').write_text('x')
(folder / f'{host}-gone').write_text('x')
time.sleep(3)
(folder / f'{host}-gone').unlink()
time.sleep(0 if len(found) > 1 else 600)
"""


@pytest.fixture(name="service", scope="module")
def _service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with simulator(tmp_path_factory.mktemp("simulator")) as made:
        s3 = made.aws.client("s3")
        s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
        for key in ("data/a.jsonl", "data/more/b.jsonl", "data.txt"):
            s3.put_object(Bucket=BUCKET, Key=key, Body=key.encode())
        yield made
        assert made.hosts is not None
        names = made.hosts.laboratory.names
    namespaces = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    assert not any(name in namespaces for name in names), "nothing is left of it"
    assert not any(
        path.name.startswith("vu") and str(os.getpid()) in path.name for path in Path("/sys/class/net").iterdir()
    )


def start(service: Service, name: str, program: str, **changes: Any) -> TrainingJob:
    """The job of a request whose containers run the program: a channel holds it, as it holds a job file."""
    service.aws.client("s3").put_object(Bucket=BUCKET, Key=f"job-{name}/program.py", Body=program.encode())
    channels = {"job": f"s3://{BUCKET}/job-{name}/", "data": f"s3://{BUCKET}/data/", "one": f"s3://{BUCKET}/data.txt"}
    request = {
        "TrainingJobName": name,
        "AlgorithmSpecification": {
            "TrainingImage": "image", "TrainingInputMode": "File", "ContainerEntrypoint": ["python"],
            "ContainerArguments": ["/opt/ml/input/data/job/program.py"],
        },
        "RoleArn": service.aws.role,
        "InputDataConfig": [
            {"ChannelName": one, "InputMode": "File", "DataSource": {"S3DataSource": {
                "S3DataType": "S3Prefix", "S3Uri": url, "S3DataDistributionType": "FullyReplicated"}}}
            for one, url in channels.items()
        ],
        "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/out", "CompressionType": "NONE"},
        "ResourceConfig": {"InstanceType": "ml.c5.xlarge", "InstanceCount": 2, "VolumeSizeInGB": 10},
        "StoppingCondition": {"MaxRuntimeInSeconds": 600},
        "EnableManagedSpotTraining": False,
        **changes,
    }  # fmt: skip
    boto3.client("sagemaker", region_name=REGION).create_training_job(**request)
    return service.jobs[name]


def ended(job: TrainingJob) -> dict[str, Any]:
    """Its description, once it is over."""
    job.thread.join(120)
    assert not job.thread.is_alive()
    found: dict[str, Any] = boto3.client("sagemaker", region_name=REGION).describe_training_job(
        TrainingJobName=job.name
    )
    return found


def printed(job: TrainingJob) -> str:
    return "\n".join(event["message"] for stream in job.streams for event in stream.events)


def test_a_container_finds_its_channels_and_its_place(service: Service):
    program = (
        "import pathlib, socket; p = pathlib.Path('/opt/ml/input');"
        "print(sorted(str(f.relative_to(p)) for f in p.rglob('*') if f.is_file()), socket.gethostbyname('algo-2'),"
        "(p / 'config/resourceconfig.json').read_text())"
    )
    job = start(service, "finds", program)
    assert ended(job)["TrainingJobStatus"] == "Completed"
    for host, stream in zip(("algo-1", "algo-2"), job.streams, strict=True):
        line = stream.events[0]["message"]
        for file in ("data/data/a.jsonl", "data/data/more/b.jsonl", "data/job/program.py", "data/one/data.txt"):
            assert f"'{file}'" in line
        assert f'"current_host": "{host}"' in line
        assert '"hosts": ["algo-1", "algo-2"]' in line
        assert stream.name.startswith(f"finds/{host}-")


def test_the_model_is_collected_as_plain_files(service: Service):
    job = start(service, "collects", "open('/opt/ml/model/weights', 'w').write('w')")
    assert ended(job)["TrainingJobStatus"] == "Completed"
    assert service.aws.keys(BUCKET, "out/collects") == ["out/collects/output/model/weights"]


def test_the_reason_is_the_beginning_of_what_the_container_left(service: Service):
    program = "open('/opt/ml/output/failure', 'w').write('[exit 2] ' + 'x' * 2000); raise SystemExit(2)"
    told = ended(start(service, "fails", program))
    assert told["TrainingJobStatus"] == "Failed"
    assert told["FailureReason"].startswith("AlgorithmError: [exit 2] xxx")
    assert told["FailureReason"].count("x") - told["FailureReason"].count("exit") == 1015


def test_a_stop_leaves_time_to_save(service: Service):
    job = start(service, "stops", SAVES)
    wait_for(lambda: printed(job).count("waiting") == 2)
    boto3.client("sagemaker", region_name=REGION).stop_training_job(TrainingJobName="stops")
    assert ended(job)["SecondaryStatus"] == "Stopped"
    assert service.aws.keys(BUCKET, "out/stops") == ["out/stops/output/model/saved.txt"]


def test_who_does_not_hear_a_stop_is_killed(service: Service, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tests.sagemaker_simulator.STOP_SECONDS", 2.0)
    job = start(service, "deaf", f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {WAITS}")
    wait_for(lambda: printed(job).count("waiting") == 2)
    begun = time.monotonic()
    job.stop()
    assert ended(job)["TrainingJobStatus"] == "Stopped"
    assert 2.0 <= time.monotonic() - begun < 20
    assert service.hosts is not None
    assert not any(
        "waiting" in line for name in service.hosts.laboratory.names for line in service.hosts.laboratory.jobs(name)
    )


def test_a_job_is_stopped_when_its_time_is_over(service: Service):
    job = start(service, "long", WAITS, StoppingCondition={"MaxRuntimeInSeconds": 2})
    assert ended(job)["SecondaryStatus"] == "MaxRuntimeExceeded"


def test_spot_capacity_comes_back_with_wiped_disks_and_its_checkpoints(service: Service):
    job = start(
        service, "spot", COUNTS, EnableManagedSpotTraining=True,
        StoppingCondition={"MaxRuntimeInSeconds": 600, "MaxWaitTimeInSeconds": 900},
        CheckpointConfig={"S3Uri": f"s3://{BUCKET}/kept", "LocalPath": "/opt/ml/checkpoints"},
    )  # fmt: skip
    wait_for(lambda: len(service.aws.keys(BUCKET, "kept/")) == 4)
    wait_for(lambda: service.aws.keys(BUCKET, "kept/") == ["kept/algo-1-0", "kept/algo-2-0"])
    job.interrupt(warned=False)
    assert ended(job)["TrainingJobStatus"] == "Completed"
    assert printed(job).count("found [] tmp []") == 2
    assert printed(job).count("found ['algo-1-0', 'algo-2-0'] tmp []") == 2
    assert [one["Status"] for one in job.transitions].count("Interrupted") == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"RoleArn": "arn:aws:iam::123456789012:role/no-such-role"}, "Could not assume role"),
        ({"OutputDataConfig": {"S3OutputPath": "nowhere"}}, "is not of the form"),
        ({"StoppingCondition": {"MaxRuntimeInSeconds": 9, "MaxWaitTimeInSeconds": 9}}, "spot capacity alone"),
        ({"TrainingJobName": "finds"}, "must be unique"),
    ],
)
def test_a_request_that_amazon_would_refuse_is_refused(service: Service, changes: dict[str, Any], said: str):
    with pytest.raises(ClientError, match=said):
        start(service, "refused", "0", **changes)


def test_an_empty_channel_fails_the_job(service: Service):
    channels = [{"ChannelName": "job", "InputMode": "File", "DataSource": {
        "S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"s3://{BUCKET}/none/"}}}]  # fmt: skip
    told = ended(start(service, "empty", "0", InputDataConfig=channels))
    assert "no S3 objects under s3://bucket/none/" in told["FailureReason"]


def test_what_was_asked_is_kept_as_it_came(service: Service):
    assert any(json.loads(body).get("TrainingJobName") == "collects" for body in service.bodies)


@pytest.mark.slow
def test_ten_hosts_know_their_places_by_number(tmp_path: Path):
    program = (
        "from velocity.launch.place import find_place; place = find_place('sagemaker'); print(place.index, place.host)"
    )
    with simulator(tmp_path, 10) as service:
        service.aws.client("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
        for key in ("data/a.jsonl", "data.txt"):
            service.aws.client("s3").put_object(Bucket=BUCKET, Key=key, Body=b"x")
        machines = {"InstanceType": "ml.c5.xlarge", "InstanceCount": 10, "VolumeSizeInGB": 10}
        job = start(service, "ten", program, ResourceConfig=machines)
        assert ended(job)["TrainingJobStatus"] == "Completed", printed(job)
        lines = logs.Streams(boto3.client("logs", region_name=REGION), "ten").new_lines()
    assert sorted(lines) == sorted(f"algo-{number}  {number - 1} algo-{number}" for number in range(1, 11))
