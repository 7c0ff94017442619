"""What of an account a job needs is looked at before anything is sent or costs money: one clear error each.

What we may not look at is left to SageMaker, which refuses for nothing, too.
"""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import unquote

from velocity.config.sagemaker import SageMakerConfig
from velocity.errors import Problem, UserError
from velocity.launch.container import pinned_image
from velocity.launch.launcher import Submission
from velocity.launch.sagemaker import bucket as buckets
from velocity.launch.sagemaker.account import Clients, code_of, denied, told
from velocity.launch.sagemaker.failure import status_of
from velocity.launch.sagemaker.names import Names, key_of

ROLE = re.compile(r"arn:aws[a-z-]*:iam::(\d{12}):role/(?:.*/)?([\w+=,.@-]+)")
IMAGE = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr(?:-fips)?\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(?:\.cn)?/"
    r"(?P<name>[a-z0-9._/-]+)(?::(?P<tag>[\w.-]+))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
SERVICE = "sagemaker.amazonaws.com"


def image_of(launch: SageMakerConfig) -> str | None:
    """What the job names, or what was pushed last from here."""
    pushed = pinned_image() if launch.image is None else None
    return pushed.image if pushed else launch.image


def missing(launch: SageMakerConfig) -> list[Problem]:
    """What the launch section leaves out, and nothing else says."""
    problems = []
    if launch.role is None:
        fix = "name the role that training jobs take on; docs/guides/launching.md has its policy"
        problems.append(Problem("'launch.role' is missing", "launch.role", fix))
    if image_of(launch) is None:
        fix = "velocity image push, from this folder; or name an image of the account's registry"
        problems.append(Problem("'launch.image' is missing, and none was pushed", "launch.image", fix))
    return problems


def resolve_names(submission: Submission, clients: Clients) -> Names:
    """Bucket, role, image and runs as the account has them; UserError for what it has not."""
    launch: SageMakerConfig = submission.launch
    with told("launch"):
        account = str(clients("sts").get_caller_identity()["Account"])
    region = str(clients("sagemaker").meta.region_name)
    bucket = launch.bucket or buckets.default_bucket(region, account)
    there = buckets.is_there(clients("s3"), bucket, region, None if launch.bucket else account)
    if launch.bucket and not there:
        raise UserError(
            f"there is no bucket {bucket}", "launch.bucket", "create it, or leave it out for the default one"
        )
    role = _role(clients("iam"), str(launch.role), account)
    image = _image(clients("ecr"), str(image_of(launch)), region)
    runs = _runs(submission, clients, bucket) if there else {key_of(job.output): 1 for job in submission.jobs}
    return Names(bucket=bucket, role=role, image=image, runs=runs)


def _runs(submission: Submission, clients: Clients, bucket: str) -> dict[str, int]:
    """The number of each output's run: the newest one, or a new one for `--fresh`; UserError where it is written."""
    fresh, runs = submission.fresh, {}
    for job in submission.jobs:
        key, prefix = key_of(job.output), submission.launch.prefix
        newest = buckets.newest_run(clients("s3"), bucket, prefix, key)
        runs[key] = max(1, newest + fresh)
        held = buckets.holder(clients("s3"), bucket, prefix, key, newest) if newest else None
        if held is not None and _is_going_on(clients("sagemaker"), held):
            what = f"the training job {held} writes the run of {job.output}, and goes on"
            raise UserError(what, "output", f"wait for it, or: velocity cancel {held}")
    return runs


def _is_going_on(sagemaker: Any, name: str) -> bool:
    try:
        return not status_of(sagemaker.describe_training_job(TrainingJobName=name)).over
    except Exception as error:  # botocore makes its errors while it runs
        if denied(error) or code_of(error) in ("ValidationException", "ResourceNotFound"):
            return False
        with told("launch"):
            raise


def _role(iam: Any, role: str, account: str) -> str:
    """Its ARN."""
    found = ROLE.fullmatch(role)
    if found is None and role.startswith("arn:"):
        raise UserError(f"{role} is no ARN of a role", "launch.role", "arn:aws:iam::ACCOUNT:role/NAME")
    if found and found[1] != account:
        what = f"the role {role} is account {found[1]}'s, and the credentials are account {account}'s"
        raise UserError(what, "launch.role", "name a role of the same account")
    name = found[2] if found else role
    try:
        answer = iam.get_role(RoleName=name)["Role"]
    except Exception as error:  # botocore makes its errors while it runs
        if code_of(error) == "NoSuchEntity":
            raise UserError(f"there is no role {name} in account {account}", "launch.role", "create it") from None
        if denied(error) and found:
            return role
        if denied(error):
            raise UserError(f"the role {name} cannot be looked up", "launch.role", "give its ARN") from None
        with told("launch.role"):
            raise
    if not _trusts(answer.get("AssumeRolePolicyDocument", {})):
        fix = f"its trust policy has to allow sts:AssumeRole to {SERVICE}"
        raise UserError(f"SageMaker may not take on the role {name}", "launch.role", fix)
    return str(answer["Arn"])


def _trusts(policy: Any) -> bool:
    policy = json.loads(unquote(policy)) if isinstance(policy, str) else policy
    statements = policy.get("Statement", [])
    for statement in [statements] if isinstance(statements, dict) else statements:
        principal = statement.get("Principal", {})
        services = principal.get("Service", []) if isinstance(principal, dict) else []
        if statement.get("Effect") == "Allow" and SERVICE in ([services] if isinstance(services, str) else services):
            return True
    return False


def _image(ecr: Any, image: str, region: str) -> str:
    """The image by its digest, so that a tag that moves changes no job; as it was given where we may not look."""
    found = IMAGE.fullmatch(image)
    if found is None:
        fix = "velocity image push brings it there; ACCOUNT.dkr.ecr.REGION.amazonaws.com/NAME:TAG"
        raise UserError(f"{image} is no image in ECR, and SageMaker runs no other", "launch.image", fix)
    if found["region"] != region:
        what = f"the image lies in {found['region']}, and the job runs in {region}"
        raise UserError(what, "launch.image", f"velocity image push brings it to {region}, too")
    wanted = {"imageDigest": found["digest"]} if found["digest"] else {"imageTag": found["tag"] or "latest"}
    try:
        answer = ecr.describe_images(registryId=found["account"], repositoryName=found["name"], imageIds=[wanted])
    except Exception as error:  # botocore makes its errors while it runs
        if denied(error):
            return image
        if code_of(error) in ("RepositoryNotFoundException", "ImageNotFoundException"):
            raise UserError(f"there is no image {image}", "launch.image", "velocity image push") from None
        with told("launch.image"):
            raise
    registry = image.partition("/")[0]
    return f"{registry}/{found['name']}@{answer['imageDetails'][0]['imageDigest']}"
