"""SageMaker and CloudWatch's logs over HTTP: boto3 sends here what it would send to Amazon. It starts no container."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.validate import ParamValidator

from tests.laboratory import laboratory
from tests.sagemaker_account import ACCOUNT, REGION, Account, account
from tests.sagemaker_simulator import Hosts, Stream, TrainingJob, hosts_of
from velocity.errors import UserError
from velocity.launch.sagemaker.logs import GROUP
from velocity.launch.sagemaker.validate import check_request

PAGE = 100  # events, so that tests turn pages


class Refused(Exception):
    """What is answered with status 400."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Service:
    """What was asked, and the jobs that came of it."""

    def __init__(self, aws: Account, hosts: Hosts | None) -> None:
        self.aws, self.hosts = aws, hosts
        self.bodies: list[str] = []  # of every request, as it came over the wire
        self.jobs: dict[str, TrainingJob] = {}
        model = botocore.session.get_session().get_service_model("sagemaker")
        self._shape = model.operation_model("CreateTrainingJob").input_shape

    def answer(self, operation: str, body: str) -> dict[str, Any]:
        """As Amazon would."""
        self.bodies.append(body)
        asked: dict[str, Any] = json.loads(body or "{}")
        answers: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "SageMaker.CreateTrainingJob": self._create,
            "SageMaker.DescribeTrainingJob": lambda one: self._job(one).describe(),
            "SageMaker.StopTrainingJob": self._stop,
            "Logs_20140328.DescribeLogStreams": self._streams,
            "Logs_20140328.GetLogEvents": self._events,
        }
        if operation not in answers:
            raise Refused("UnknownOperationException", operation)
        return answers[operation](asked)

    def _create(self, request: dict[str, Any]) -> dict[str, Any]:
        if problems := ParamValidator().validate(request, self._shape).generate_report():
            raise Refused("ValidationException", problems)
        try:
            check_request(request)
        except UserError as error:
            raise Refused("ValidationException", str(error)) from None
        if request["TrainingJobName"] in self.jobs:
            raise Refused("ResourceInUse", "Training job names must be unique within an AWS account and region")
        if request["RoleArn"] != self.aws.role:
            raise Refused("ValidationException", "Could not assume role; check that it exists and trusts SageMaker")
        assert self.hosts is not None, "this test starts no container"
        self.jobs[request["TrainingJobName"]] = TrainingJob(request, self.hosts, self.aws)
        return {"TrainingJobArn": f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:training-job/{request['TrainingJobName']}"}

    def _job(self, asked: dict[str, Any]) -> TrainingJob:
        if asked["TrainingJobName"] not in self.jobs:
            raise Refused("ValidationException", "Requested resource not found.")
        return self.jobs[asked["TrainingJobName"]]

    def _stop(self, asked: dict[str, Any]) -> dict[str, Any]:
        if self._job(asked).status not in ("InProgress", "Stopping"):
            raise Refused("ValidationException", f"The job is in status {self._job(asked).status}")
        self._job(asked).stop()
        return {}

    def _all_streams(self) -> list[Stream]:
        return [stream for job in self.jobs.values() for stream in job.streams]

    def _streams(self, asked: dict[str, Any]) -> dict[str, Any]:
        found = self._all_streams()
        if asked["logGroupName"] != GROUP or not found:
            raise Refused("ResourceNotFoundException", "The specified log group does not exist.")
        names = sorted(one.name for one in found if one.name.startswith(asked.get("logStreamNamePrefix", "")))
        return {"logStreams": [{"logStreamName": name} for name in names]}

    def _events(self, asked: dict[str, Any]) -> dict[str, Any]:
        stream = next(one for one in self._all_streams() if one.name == asked["logStreamName"])
        begin = int(asked.get("nextToken", "f/0").partition("/")[2])
        events = stream.events[begin : begin + PAGE]
        return {"events": events, "nextForwardToken": f"f/{begin + len(events)}", "nextBackwardToken": "b/0"}


class _Front(BaseHTTPRequestHandler):
    """HTTP as AWS's JSON protocol has it."""

    service: Service

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        try:
            code, answer = 200, self.service.answer(self.headers["X-Amz-Target"], body)
        except Refused as error:
            code, answer = 400, {"__type": error.code, "message": str(error)}
        content = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/x-amz-json-1.1")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""


@contextmanager
def serving(service: Service) -> Iterator[None]:
    """boto3's calls for SageMaker and the logs, of this process and those it starts, are answered by the service."""
    front = type("Front", (_Front,), {"service": service})
    server = ThreadingHTTPServer(("127.0.0.1", 0), front)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("SAGEMAKER", "CLOUDWATCH_LOGS"):
                patch.setenv(f"AWS_ENDPOINT_URL_{name}", f"http://127.0.0.1:{server.server_port}")
            yield
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def simulator(folder: Path, count: int = 2) -> Iterator[Service]:
    """SageMaker with so many machines, as long as this lasts; the test is skipped where there can be none."""
    if Path(sys.executable).is_relative_to("/tmp"):
        pytest.skip("each machine has a /tmp of its own, which would hide this Python")
    with (
        laboratory(folder / "laboratory", count, prefix=f"sm{os.getpid()}-") as made,
        hosts_of(made, folder / "hosts") as hosts,
        account("0.0.0.0", reached_at=hosts.address) as aws,
    ):
        service = Service(aws, hosts)
        try:
            with serving(service):
                yield service
        finally:
            for job in service.jobs.values():
                job.stop()
                job.thread.join(150)
