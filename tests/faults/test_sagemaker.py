"""Jobs on SageMaker's simulator, sent and followed by the command as a user does: nothing that counts is lost."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commands import losses
from tests.making import generate_data, write_job, write_jsonl
from tests.running import prepare_folder
from tests.sagemaker_account import KEY, PLANTED, SECRET_KEY
from tests.sagemaker_service import Service, simulator
from tests.sagemaker_simulator import TrainingJob

pytestmark = pytest.mark.slow
STEPS, EVERY = 300, 10
WAIT_SECONDS = 240.0
LONG = {"duration": {"steps": 20_000}, "checkpoint": {"every": 10_000}}  # as long as a test needs it


@pytest.fixture(name="service", scope="module")
def _service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with simulator(tmp_path_factory.mktemp("simulator")) as made:
        yield made


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_folder(tmp_path_factory.mktemp("jobs"))


def launch(service: Service, **changes: Any) -> dict[str, Any]:
    machine = {"kind": "sagemaker", "instance": "ml.c5.xlarge", "nodes": 2, "processes": 2}
    return {**machine, "role": service.aws.role, "image": service.aws.image, **changes}


def sft(folder: Path, name: str, **sections: Any) -> Path:
    """A job of some seconds that saves several times a second."""
    job = {
        "output": name,
        "optimizer": {"kind": "adamw", "learning_rate": 1e-3, "warmup": 0.1},
        "duration": {"steps": STEPS},
        "checkpoint": {"every": EVERY, "keep": 2},
        "strategy": {"zero": 1, "precision": "fp32"},
        "batch": {"rows": 8, "micro": 2},
    }
    return write_job(folder / f"{name}.yaml", **{**job, **sections})


def velocity(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command, in the folder that jobs are submitted from."""
    command = [sys.executable, "-m", "velocity", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)


def submit(folder: Path, service: Service, job: Path, *arguments: str) -> TrainingJob:
    """The training job that was made of it."""
    known = set(service.jobs)
    done = velocity(folder, "run", job, "--on", "sagemaker", "--detach", *arguments)
    assert done.returncode == 0, done.stderr
    (name,) = set(service.jobs) - known
    return service.jobs[name]


def mirror_of(folder: Path, training: TrainingJob) -> tuple[str, str]:
    """Bucket and key below which the job's last output lies."""
    sent = json.loads((folder / ".velocity" / "jobs" / training.name / "submitted.json").read_text())
    bucket, _, key = sent["mirrors"][-1].removeprefix("s3://").partition("/")
    return bucket, key


def names_at_mirror(service: Service, folder: Path, training: TrainingJob) -> list[str]:
    bucket, key = mirror_of(folder, training)
    return [name.removeprefix(f"{key}/") for name in service.aws.keys(bucket, f"{key}/")]


def at_mirror(service: Service, folder: Path, training: TrainingJob, name: str) -> str:
    """What a file there holds."""
    bucket, key = mirror_of(folder, training)
    body: bytes = service.aws.client("s3").get_object(Bucket=bucket, Key=f"{key}/{name}")["Body"].read()
    return body.decode()


def wait_until(training: TrainingJob, true: Callable[[], object]) -> None:
    """Nothing once it is true, as long as the job goes on."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not true():
        assert training.thread.is_alive(), f"{training.status}: {training.reason}\n{printed(training)}"
        assert time.monotonic() < deadline, f"not true within {WAIT_SECONDS} s\n{printed(training)}"
        time.sleep(0.1)


def printed(training: TrainingJob) -> str:
    return "\n".join(f"{stream.name}: {event['message']}" for stream in training.streams for event in stream.events)


@pytest.fixture(name="undisturbed", scope="module")
def _undisturbed(folder: Path) -> list[tuple[int, float, float]]:
    """The losses of one machine."""
    done = velocity(folder, "run", sft(folder, "alone", launch={"processes": 2}))
    assert done.returncode == 0, done.stderr
    return losses(folder / "alone")


def assert_close(found: list[tuple[int, float, float]], expected: list[tuple[int, float, float]]) -> None:
    assert [line[0] for line in found] == [line[0] for line in expected]
    for one, other in zip(found, expected, strict=True):
        assert one[1:] == pytest.approx(other[1:], rel=1e-5, abs=1e-5), f"step {one[0]}"


def test_two_hosts_have_the_losses_of_one_machine_and_the_run_comes_back(
    folder: Path, service: Service, undisturbed: list[tuple[int, float, float]]
):
    job = sft(folder, "two", launch=launch(service))
    done = velocity(folder, "run", job)
    assert done.returncode == 0, done.stderr
    training = list(service.jobs.values())[-1]
    assert training.status == "Completed"
    assert velocity(folder, "fetch", training.name).returncode == 0
    assert_close(losses(folder / "two"), undisturbed)
    assert (folder / "two" / "model" / "model.safetensors").is_file()


def test_spot_capacity_that_is_taken_away_twice_changes_no_loss(
    folder: Path, service: Service, undisturbed: list[tuple[int, float, float]]
):
    training = submit(folder, service, sft(folder, "spot", launch=launch(service, spot=True)))
    for step, warned in ((20, False), (100, True)):
        _wait_for_step(step, service, folder, training)
        assert training.status == "InProgress", "not before its end"
        training.interrupt(warned=warned)
    done = velocity(folder, "logs", training.name)
    assert done.returncode == 0, done.stderr
    assert training.starts == 3, "it was interrupted twice"
    assert_close(_losses(service, folder, training), undisturbed)


def _wait_for_step(step: int, service: Service, folder: Path, training: TrainingJob) -> None:
    """The mirror has a checkpoint of that step, or of a later one."""
    wait_until(training, lambda: _newest(names_at_mirror(service, folder, training)) >= f"step-{step:08}/COMMITTED")


def _newest(names: list[str]) -> str:
    """The newest checkpoint that is whole."""
    return max((name for name in names if re.fullmatch(r"step-\d+/COMMITTED", name)), default="")


def _losses(service: Service, folder: Path, training: TrainingJob) -> list[tuple[int, float, float]]:
    lines = [json.loads(line) for line in at_mirror(service, folder, training, "run/metrics.jsonl").splitlines()]
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines if "loss" in line]


def test_a_stopped_job_saves_and_the_same_command_goes_on(
    folder: Path, service: Service, undisturbed: list[tuple[int, float, float]]
):
    job = sft(folder, "stopped", launch=launch(service))
    training = submit(folder, service, job)
    wait_until(training, lambda: _newest(names_at_mirror(service, folder, training)))
    assert training.status == "InProgress"
    assert velocity(folder, "cancel", training.name).returncode == 0
    followed = velocity(folder, "logs", training.name)
    assert followed.returncode == 75, followed.stderr
    assert training.status == "Stopped"
    done = velocity(folder, "run", job)
    assert done.returncode == 0, done.stderr
    again = list(service.jobs.values())[-1]
    assert f"step {STEPS}/{STEPS}" in printed(again), "it was stopped before the end"
    assert "step 1/" not in printed(again), "it went on"
    assert_close(_losses(service, folder, again), undisturbed)


def test_without_a_network_sagemaker_itself_keeps_the_run(
    folder: Path, service: Service, undisturbed: list[tuple[int, float, float]]
):
    job = sft(folder, "isolated", launch=launch(service, nodes=1, isolated=True, spot=True))
    training = submit(folder, service, job)
    _wait_for_step(20, service, folder, training)
    assert training.status == "InProgress", "not before its end"
    training.interrupt(warned=False)
    done = velocity(folder, "logs", training.name)
    assert done.returncode == 0, done.stderr
    assert training.starts == 2, "it was interrupted"
    assert "step 1/" not in printed(training).partition("fetching step-")[2], "it went on"
    assert velocity(folder, "fetch", training.name).returncode == 0
    assert_close(losses(folder / "isolated"), undisturbed)
    assert (folder / "isolated" / "model" / "model.safetensors").is_file()


def test_a_killed_rank_is_named_everywhere(folder: Path, service: Service):
    training = submit(folder, service, sft(folder, "killed", **LONG, launch=launch(service)))
    wait_until(training, lambda: re.search(r"step \d+/20000  loss", printed(training)))
    os.kill(_rank(service, host=1), signal.SIGKILL)
    followed = velocity(folder, "logs", training.name)
    assert followed.returncode == 1
    assert training.reason.startswith("AlgorithmError: [exit 1] a process was killed by SIGKILL")
    listed = json.loads(velocity(folder, "jobs", "--json").stdout)
    (row,) = (one for one in listed if one["name"] == training.name)
    assert (row["state"], row["exit_status"]) == ("failed", 1)
    for text in (training.reason, followed.stderr, row["why"]):
        assert "rank 1 on algo-2" in text
        assert "SIGKILL" in text


def _rank(service: Service, *, host: int) -> int:
    """The process of a rank on that host."""
    assert service.hosts is not None
    laboratory = service.hosts.laboratory
    for pid in laboratory.processes(laboratory.names[host]):
        arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        if "velocity.training.run" in arguments and "velocity.distributed.node" not in arguments:
            return pid
    raise AssertionError("there is no rank")


def test_what_the_user_got_wrong_is_not_tried_again(folder: Path, service: Service):
    write_jsonl(folder / "torn.jsonl", [{"messages": "none"}])
    job = sft(folder, "wrong", data={"train": str(folder / "torn.jsonl")}, launch=launch(service))
    done = velocity(folder, "run", job)
    assert done.returncode == 2, done.stderr
    training = list(service.jobs.values())[-1]
    assert training.reason.startswith("AlgorithmError: [exit 2]")
    assert "torn.jsonl" in training.reason


def test_every_row_comes_out_once_though_the_hosts_were_lost(folder: Path, service: Service):
    rows = [{"prompt": f"What is {number}?", "number": number} for number in range(120)]
    write_jsonl(folder / "prompts.jsonl", rows)
    job = {**generate_data(folder), "output": "answers", "generation": {"max_new_tokens": 24}}
    job["batch"] = {"rows": 4}
    path = folder / "answers.yaml"
    path.write_text(json.dumps({**job, "launch": launch(service, spot=True)}))
    training = submit(folder, service, path)
    wait_until(training, lambda: any("shard" in name for name in names_at_mirror(service, folder, training)))
    assert training.status == "InProgress"
    training.interrupt(warned=False)
    done = velocity(folder, "logs", training.name)
    assert done.returncode == 0, done.stderr
    assert training.starts == 2, "it was interrupted"
    lines = at_mirror(service, folder, training, "run/completions.jsonl").splitlines()
    assert [json.loads(line)["number"] for line in lines] == list(range(120))


def test_a_planted_secret_is_found_by_the_job_and_lies_nowhere(folder: Path, service: Service):
    secrets = {"HF_TOKEN": service.aws.secret}
    training = submit(folder, service, sft(folder, "secret", **LONG, launch=launch(service, secrets=secrets)))
    wait_until(training, lambda: re.search(r"step \d+/20000  loss", printed(training)))
    for host in (0, 1):
        assert f"HF_TOKEN={PLANTED}" in Path(f"/proc/{_rank(service, host=host)}/environ").read_text().split("\0")
    assert velocity(folder, "cancel", training.name).returncode == 0
    done = velocity(folder, "logs", training.name)
    assert done.returncode == 75, done.stderr
    kept = [*service.bodies, printed(training), done.stdout, done.stderr]
    kept += [file.read_text() for file in (folder / ".velocity").rglob("*") if file.is_file()]
    buckets = [one["Name"] for one in service.aws.client("s3").list_buckets()["Buckets"]]
    everything = "\n".join(kept).encode() + b"".join(
        content for name in buckets for content in service.aws.objects(name).values()
    )
    assert service.aws.secret.encode() in everything, "its address is"
    for planted in (PLANTED, KEY, SECRET_KEY):
        assert planted.encode() not in everything
