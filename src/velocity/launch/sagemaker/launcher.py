"""AWS SageMaker: a training job runs every node in a container, whatever the task. It knows no task."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from velocity.config.sagemaker import SageMakerConfig
from velocity.errors import JobError, Problem, UserError
from velocity.launch.launcher import JobStatus, Submission, Submitted
from velocity.launch.sagemaker import bucket as buckets
from velocity.launch.sagemaker import logs as aws_logs
from velocity.launch.sagemaker.account import Clients, clients_of, told
from velocity.launch.sagemaker.check import missing, resolve_names
from velocity.launch.sagemaker.failure import status_of
from velocity.launch.sagemaker.inputs import Look, Plan, file_texts, look, mirror_of, plan_inputs
from velocity.launch.sagemaker.names import JOB_CHANNEL, Names, key_of
from velocity.launch.sagemaker.request import request_of
from velocity.launch.sagemaker.upload import digest_of, entries_of, files_of, send
from velocity.launch.sagemaker.validate import check_request
from velocity.secrets import found_in
from velocity.terminal import say

Result = TypeVar("Result")

REQUEST = "request.json"
POLL_SECONDS = 5.0
PATIENCE = 120  # polls without an answer
# Of the right form: a request is checked before anybody was asked what stands in their place.
STAND_IN = Names("velocity", "arn:aws:iam::000000000000:role/velocity", "velocity")


class SageMakerLauncher:
    """Training jobs by boto3 alone."""

    def __init__(self, clients: Callable[[str | None], Clients] = clients_of, at: Look = look) -> None:
        """`at` says what lies at a path of this machine."""
        self._make_clients, self._at = clients, at
        self._known: dict[str | None, Clients] = {}

    def render(self, submission: Submission) -> Mapping[str, str]:
        """The request, and the job files as they run there; what only the account knows is a blank."""
        return _texts(submission, plan_inputs(submission.jobs, self._at), _named(submission.launch, Names()))

    def check(self, submission: Submission) -> None:
        """Nothing, or UserError for what SageMaker would refuse, or what the job would not find."""
        plan = plan_inputs(submission.jobs, self._at)
        if problems := missing(submission.launch):
            raise UserError(problems)
        _check_offline(submission, plan, _filled(submission, plan, STAND_IN))
        for channel in plan.channels:
            if channel.path:
                files_of(channel)
        clients = self._clients(submission.launch.region)
        resolve_names(submission, clients)
        for channel in plan.channels:
            if channel.url:
                buckets.holds_something(clients("s3"), channel.url, channel.where)

    def submit(self, submission: Submission) -> Submitted:
        """Inputs and job files lie in S3, and the training job is created."""
        launch, clients = submission.launch, self._clients(submission.launch.region)
        plan, names = plan_inputs(submission.jobs, self._at), resolve_names(submission, clients)
        self._make_bucket(launch, names, clients)
        names = replace(names, digests=_upload(plan, names, launch))
        _check_offline(submission, plan, names)
        texts = _texts(submission, plan, names)
        self._send_files(submission, plan, names, texts, clients)
        for name, text in texts.items():
            (submission.folder / name).write_text(text, encoding="utf-8")
        buckets.hold(clients("s3"), names.bucket, launch.prefix, names.runs, submission.name)
        with told("launch"):
            clients("sagemaker").create_training_job(**json.loads(texts[REQUEST]))
        return Submitted(
            submission.name,
            "sagemaker",
            submission.name,
            submission.folder,
            tuple(job.output for job in submission.jobs),
            time.time(),
            {"region": clients("sagemaker").meta.region_name},
            tuple(mirror_of(job, submission.jobs, names) for job in submission.jobs),
        )

    def status(self, submitted: Submitted) -> JobStatus:
        """Where it is now."""
        return status_of(self._describe(submitted))

    def logs(self, submitted: Submitted, *, follow: bool) -> Iterator[str]:
        """The lines of all hosts; with `follow` until it is over."""
        with told(submitted.name):
            streams = aws_logs.Streams(self._clients(submitted.facts["region"])("logs"), submitted.id)
            if not follow:
                yield from streams.new_lines()
                return
        yield from aws_logs.follow(
            lambda: _patiently(streams.new_lines, submitted.name),
            lambda: _patiently(lambda: self._describe(submitted), submitted.name),
            lambda: time.sleep(POLL_SECONDS),
            lambda description: status_of(description).over,
        )

    def cancel(self, submitted: Submitted) -> None:
        """It was asked to stop; SageMaker waits two minutes for it to save. Nothing where it is over."""
        if not self.status(submitted).over:
            with told(submitted.name):
                self._clients(submitted.facts["region"])("sagemaker").stop_training_job(TrainingJobName=submitted.id)

    def _clients(self, region: str | None) -> Clients:
        """Those of a region, made once."""
        if region not in self._known:
            self._known[region] = self._make_clients(region)
        return self._known[region]

    def _describe(self, submitted: Submitted) -> Mapping[str, Any]:
        with told(submitted.name):
            sagemaker = self._clients(submitted.facts["region"])("sagemaker")
            described: Mapping[str, Any] = sagemaker.describe_training_job(TrainingJobName=submitted.id)
        return described

    def _make_bucket(self, launch: SageMakerConfig, names: Names, clients: Clients) -> None:
        """The account's default bucket is there; one that was named is, or `resolve_names` had said so."""
        region = str(clients("sagemaker").meta.region_name)
        if not launch.bucket and not buckets.is_there(clients("s3"), names.bucket, region, None):
            buckets.create(clients("s3"), names.bucket, region, launch.kms_key)
            say(f"created the bucket {names.bucket}")

    def _send_files(
        self, submission: Submission, plan: Plan, names: Names, texts: Mapping[str, str], clients: Clients
    ) -> None:
        """The channel of job files holds them, and what was attached."""
        folder = f"{submission.launch.prefix}/jobs/{submission.name}/{JOB_CHANNEL}"
        bodies = {name: texts[name].encode() for name in submission.files}
        bodies |= {name: Path(file).expanduser().read_bytes() for name, file in plan.attached.items()}
        with told("launch.bucket"):
            for name, body in bodies.items():
                clients("s3").put_object(Bucket=names.bucket, Key=f"{folder}/{name}", Body=body)


def _patiently(ask: Callable[[], Result], name: str) -> Result:
    """The answer, though it may be long in coming: the job goes on without us, and days may pass."""
    for left in reversed(range(PATIENCE)):
        try:
            with told(name):
                return ask()
        except JobError:
            if not left:
                raise
            time.sleep(POLL_SECONDS)
    raise AssertionError("the last try returns or raises")


def _named(launch: SageMakerConfig, names: Names) -> Names:
    """What the job file says itself is no blank."""
    return replace(
        names,
        bucket=launch.bucket or names.bucket,
        role=launch.role or names.role,
        image=launch.image or names.image,
    )


def _filled(submission: Submission, plan: Plan, names: Names) -> Names:
    """Without a blank, though nobody was asked."""
    named = _named(submission.launch, names)
    role = named.role if named.role.startswith("arn:") else names.role
    digests = {channel.name: "0" * 16 for channel in plan.channels}
    return replace(named, role=role, digests=digests, runs={key_of(job.output): 1 for job in submission.jobs})


def _texts(submission: Submission, plan: Plan, names: Names) -> dict[str, str]:
    request = json.dumps(request_of(submission, plan, names), indent=1, ensure_ascii=False)
    return {REQUEST: f"{request}\n", **file_texts(plan, submission.jobs, list(submission.files), names)}


def _check_offline(submission: Submission, plan: Plan, names: Names) -> None:
    """Nothing, or UserError for a request that would be refused, or that holds a secret."""
    problems: Sequence[Problem] = [
        Problem(f"{name} would hold {what}", name, "give it by launch.secrets; what is sent is kept, and seen")
        for name, text in _texts(submission, plan, names).items()
        if (what := found_in(text)) is not None
    ]
    if problems:
        raise UserError(problems)
    check_request(request_of(submission, plan, names))


def _upload(plan: Plan, names: Names, launch: SageMakerConfig) -> dict[str, str]:
    """Inputs that lie here lie in S3; the hash of each channel's content."""
    from velocity.checkpoints.store import open_store  # its libraries take a while to import

    digests: dict[str, str] = {}
    for channel in plan.channels:
        if not channel.path:
            continue
        files = files_of(channel)
        say(f"reading {channel.path} …")
        entries = entries_of(files)
        digests[channel.name] = digest_of(entries)
        store = open_store(names.inputs(launch.prefix))
        if not send(store, digests[channel.name], files, entries, say):
            say(f"{channel.path} is in S3 already")
    return digests
