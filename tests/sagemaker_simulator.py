"""SageMaker's training jobs on the hosts of a laboratory: what a request says happens, with moto's S3. No image is run.

Each host has an /opt/ml and a /tmp of its own, empty when its container starts: of this machine's disk the job
has the environment's Python alone. The container's name of a host is algo-N, and not its hostname.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.laboratory import Laboratory
from tests.sagemaker_account import ACCOUNT, MOTO_SIGNED, REGION, Account
from velocity.process import end_all

STOP_SECONDS = 120.0  # from SIGTERM to SIGKILL
OTHERS_SECONDS = 30.0  # for the other hosts, once one has failed
REASON_LETTERS = 1024


@dataclass
class Stream:
    """What one container printed, as CloudWatch keeps it."""

    name: str
    events: list[dict[str, Any]] = field(default_factory=list)

    def read(self, stream: Any) -> None:
        """All that comes is kept, with its time."""
        for line in stream:
            self.events.append({"timestamp": int(time.time() * 1000), "message": line.rstrip("\n")})


class Hosts:
    """Containers on the laboratory's hosts, and the way from there to moto."""

    def __init__(self, laboratory: Laboratory, folder: Path) -> None:
        self.laboratory, self.folder = laboratory, folder
        self.names = [f"algo-{number}" for number in range(1, len(laboratory.names) + 1)]
        self._of = dict(zip(self.names, laboratory.names, strict=True))
        net = f"10.{100 + os.getpid() // 256 % 100}.{os.getpid() % 256}"
        self.address = f"{net}.254"  # of this machine, seen from the hosts
        self._link = f"vu{os.getpid()}"
        self._made_folder = not Path("/opt/ml").exists()
        self._connect(net)

    def _connect(self, net: str) -> None:
        hub = self.laboratory.hub
        _ip("link", "add", self._link, "type", "veth", "peer", "name", "outside", "netns", hub)
        _ip("-n", hub, "link", "set", "outside", "master", "br0", "up")
        _ip("addr", "add", f"{self.address}/24", "dev", self._link)
        _ip("link", "set", self._link, "up")
        lines = "".join(f"{self.laboratory.addresses[name]} {algo}\n" for algo, name in self._of.items())
        for number, name in enumerate(self.laboratory.names, 1):
            _ip("-n", name, "addr", "add", f"{net}.{10 + number}/24", "dev", "eth0")
            with Path("/etc/netns", name, "hosts").open("a") as file:
                file.write(lines)

    def remove(self) -> None:
        """The way is closed, and nothing of it is left."""
        subprocess.run(["ip", "link", "del", self._link], check=False, capture_output=True)
        if self._made_folder:
            with suppress(OSError):
                Path("/opt/ml").rmdir()

    def ml(self, host: str) -> Path:
        """The /opt/ml of a host, seen from here."""
        return self.folder / host / "ml"

    def wipe(self, host: str) -> None:
        """A new machine in the host's place."""
        self.laboratory_kill(host)
        shutil.rmtree(self.folder / host, ignore_errors=True)
        for name in ("ml/input/config", "ml/input/data", "ml/model", "ml/output/data", "ml/checkpoints", "tmp"):
            (self.folder / host / name).mkdir(parents=True)

    def laboratory_kill(self, host: str) -> None:
        """Nothing of a container runs there any more; its sshd does."""
        name = self._of[host]
        for pid in self.laboratory.processes(name):
            with suppress(OSError):
                if "sshd" not in Path(f"/proc/{pid}/cmdline").read_text():
                    os.kill(pid, 9)

    def start(self, host: str, command: list[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
        """The command, running as the container's on that host."""
        mounts = {self.ml(host): Path("/opt/ml"), self.folder / host / "tmp": Path("/tmp")}
        return subprocess.Popen(
            self.laboratory.command(self._of[host], *command, mounts=mounts), env=dict(environment), cwd="/",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip


class TrainingJob:
    """One job, from its request to its end; a thread of its own does what SageMaker does."""

    def __init__(self, request: dict[str, Any], hosts: Hosts, account: Account) -> None:
        self.request, self.hosts, self.account = request, hosts, account
        self.name: str = request["TrainingJobName"]
        self.count: int = request["ResourceConfig"]["InstanceCount"]
        self.streams: list[Stream] = []
        self.status, self.reason = "InProgress", ""
        self.transitions: list[dict[str, Any]] = []
        self.starts = 0
        self._stop, self._interrupt = threading.Event(), threading.Event()
        self._warned = True
        self._containers: dict[str, subprocess.Popen[str]] = {}
        self._sent: dict[Path, tuple[int, int]] = {}
        self._phase("Starting", "Starting the training job")
        self.thread = threading.Thread(target=self._work, name=f"sagemaker {self.name}")
        self.thread.start()

    def describe(self) -> dict[str, Any]:
        """As DescribeTrainingJob says it."""
        answer = {
            **{key: value for key, value in self.request.items() if key != "Tags"},
            "TrainingJobArn": f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:training-job/{self.name}",
            "TrainingJobStatus": self.status,
            "SecondaryStatus": self.transitions[-1]["Status"],
            "SecondaryStatusTransitions": list(self.transitions),
            "CreationTime": self.transitions[0]["StartTime"],
        }
        return {**answer, "FailureReason": self.reason} if self.reason else answer

    def stop(self) -> None:
        """What StopTrainingJob does."""
        self._stop.set()

    def interrupt(self, *, warned: bool = True) -> None:
        """The spot capacity is taken away, with SIGTERM before or at once; the job starts again elsewhere."""
        assert self.request["EnableManagedSpotTraining"], "only spot capacity is taken away"
        self._warned = warned
        starts = self.starts
        self._interrupt.set()
        while self.starts == starts and self.thread.is_alive():
            time.sleep(0.05)

    def _phase(self, status: str, message: str = "") -> None:
        self.transitions.append({"Status": status, "StartTime": time.time(), "StatusMessage": message})

    def _work(self) -> None:
        try:
            self._run()
        except Exception as error:  # told as SageMaker tells its own
            self._end("Failed", "Failed", f"InternalServerError: {error!r}")
            raise

    def _run(self) -> None:
        while True:
            self._phase("Downloading", "Downloading input data")
            names = self.hosts.names[: self.count]
            for host in names:
                self.hosts.wipe(host)
                if missing := self._fill(host):
                    self._end("Failed", "Failed", f"ClientError: Data download failed: no S3 objects under {missing}")
                    return
            self._phase("Training", "Training image download completed. Training in progress.")
            self._start(names)
            ended = self._watch()
            if ended != "interrupted":
                return
            self._interrupt.clear()
            self._phase("Interrupted", "Training job interrupted: spot capacity was taken away")
            self._phase("Starting", "Starting the training job again")

    def _start(self, names: list[str]) -> None:
        algorithm = self.request["AlgorithmSpecification"]
        command = [*algorithm["ContainerEntrypoint"], *algorithm.get("ContainerArguments", [])]
        environment = {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1", "TRAINING_JOB_NAME": self.name, "AWS_REGION": REGION,
            **self.request.get("Environment", {}),
        }  # fmt: skip
        if not self.request.get("EnableNetworkIsolation"):  # else it reaches nobody, and has no credentials
            environment |= {**MOTO_SIGNED, "AWS_ENDPOINT_URL": self.account.endpoint}
        for host in names:
            process = self.hosts.start(host, command, environment)
            stream = Stream(f"{self.name}/{host}-{int(time.time() * 1000)}")
            self.streams.append(stream)
            threading.Thread(target=stream.read, args=(process.stdout,), daemon=True).start()
            self._containers[host] = process
        self.starts += 1

    def _watch(self) -> str:
        """Until the containers have ended, one way or another: `interrupted` where the job starts again."""
        limit = time.monotonic() + self.request["StoppingCondition"]["MaxRuntimeInSeconds"]
        while True:
            time.sleep(0.1)
            self._sync()
            if self._interrupt.is_set():
                self._terminate(STOP_SECONDS if self._warned else 0.0)
                return "interrupted"
            over = time.monotonic() > limit
            if self._stop.is_set() or over:
                self.status = "Stopping"
                self._phase("Stopping", "Stopping the training job")
                self._terminate(STOP_SECONDS)
                self._collect()
                self._end("Stopped", "MaxRuntimeExceeded" if over else "Stopped")
                return "stopped"
            codes = {host: process.poll() for host, process in self._containers.items()}
            if any(codes.values()):
                self._fail(next(host for host, code in codes.items() if code))
                return "failed"
            if all(code == 0 for code in codes.values()):
                self._sync()
                self._phase("Uploading", "Uploading generated training model")
                self._collect()
                self._end("Completed", "Completed")
                return "completed"

    def _fail(self, host: str) -> None:
        code = self._containers[host].returncode
        deadline = time.monotonic() + OTHERS_SECONDS
        while time.monotonic() < deadline and any(one.poll() is None for one in self._containers.values()):
            time.sleep(0.1)
        self._terminate(0.0)
        self._sync()
        file = self.hosts.ml(host) / "output" / "failure"
        said = file.read_text()[:REASON_LETTERS] if file.is_file() else ""
        self._collect()
        self._end("Failed", "Failed", f"AlgorithmError: {said}, exit code: {code}" if said else
                  f"AlgorithmError: exit code: {code}")  # fmt: skip

    def _terminate(self, seconds: float) -> None:
        """SIGTERM to each container's first process, and after so long SIGKILL to all."""
        if seconds:
            for process in self._containers.values():
                process.terminate()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and any(one.poll() is None for one in self._containers.values()):
            time.sleep(0.1)
            self._sync()
        for host, process in self._containers.items():
            end_all(process.pid)
            self.hosts.laboratory_kill(host)
            process.wait()

    def _end(self, status: str, phase: str, reason: str = "") -> None:
        self.reason = reason
        self._phase(phase)
        self.status = status

    def _fill(self, host: str) -> str:
        """What the container finds below /opt/ml is there; the address of a channel with nothing in it, or nothing."""
        config = self.hosts.ml(host) / "input" / "config"
        channels = self.request["InputDataConfig"]
        files = {
            "resourceconfig": {
                "current_host": host, "current_instance_type": self.request["ResourceConfig"]["InstanceType"],
                "hosts": sorted(self.hosts.names[: self.count]), "network_interface_name": "eth0",
            },
            "hyperparameters": self.request.get("HyperParameters", {}),
            "inputdataconfig": {one["ChannelName"]: {"TrainingInputMode": one["InputMode"]} for one in channels},
        }  # fmt: skip
        for name, content in files.items():
            (config / f"{name}.json").write_text(json.dumps(content))
        for channel in channels:
            url = channel["DataSource"]["S3DataSource"]["S3Uri"]
            if not self._download(url, self.hosts.ml(host) / "input" / "data" / channel["ChannelName"]):
                return str(url)
        if kept := self.request.get("CheckpointConfig"):
            self._download(f"{kept['S3Uri']}/", self.hosts.ml(host) / "checkpoints")
        return ""

    def _download(self, url: str, folder: Path) -> int:
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        keys = self.account.keys(bucket, prefix)
        for key in keys:
            file = folder / key[prefix.rfind("/") + 1 :]
            file.parent.mkdir(parents=True, exist_ok=True)
            self.account.client("s3").download_file(bucket, key, str(file))
        return len(keys)

    def _sync(self) -> None:
        """/opt/ml/checkpoints of every host lies in S3; what was deleted there is deleted here, too."""
        if kept := self.request.get("CheckpointConfig"):
            bucket, _, prefix = kept["S3Uri"].removeprefix("s3://").partition("/")
            names: set[str] = set()
            for host in self.hosts.names[: self.count]:
                names |= self._send(self.hosts.ml(host) / "checkpoints", bucket, prefix)
            for key in self.account.keys(bucket, f"{prefix}/"):
                if key.removeprefix(f"{prefix}/") not in names:
                    self.account.client("s3").delete_object(Bucket=bucket, Key=key)

    def _collect(self) -> None:
        """The model, as plain files and never as a tar."""
        output = self.request["OutputDataConfig"]
        assert output["CompressionType"] == "NONE"
        bucket, _, prefix = output["S3OutputPath"].removeprefix("s3://").partition("/")
        for host in self.hosts.names[: self.count]:
            self._send(self.hosts.ml(host) / "model", bucket, f"{prefix}/{self.name}/output/model")
            self._send(self.hosts.ml(host) / "output" / "data", bucket, f"{prefix}/{self.name}/output/data")

    def _send(self, folder: Path, bucket: str, prefix: str) -> set[str]:
        names = set()
        # a walk passes over folders that vanish meanwhile
        for file in (Path(above, name) for above, _, files in os.walk(folder) for name in files):
            with suppress(FileNotFoundError):  # it was deleted while we looked
                if file.is_file():
                    name, state = file.relative_to(folder).as_posix(), (file.stat().st_mtime_ns, file.stat().st_size)
                    if self._sent.get(file) != state:
                        self.account.client("s3").upload_file(str(file), bucket, f"{prefix}/{name}")
                        self._sent[file] = state
                    names.add(name)
        return names


@contextmanager
def hosts_of(laboratory: Laboratory, folder: Path) -> Iterator[Hosts]:
    """The laboratory's hosts as containers, as long as this lasts."""
    made = Hosts(laboratory, folder)
    try:
        yield made
    finally:
        for host in made.names:
            made.laboratory_kill(host)
        made.remove()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
