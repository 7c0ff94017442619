"""The bucket of a job, and the runs in it. It knows nothing of training jobs but their names."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from velocity.errors import UserError
from velocity.launch.sagemaker.account import code_of, denied, told

PLACE = "launch.bucket"


def default_bucket(region: str, account: str) -> str:
    """The name of the account's bucket for Velocity."""
    return f"velocity-{region}-{account}"


def is_there(s3: Any, bucket: str, region: str, account: str | None) -> bool:
    """True where the bucket can be used; False where there is none.

    UserError where it is another's, or lies in another region. `account` is who must own it, if it matters.
    """
    owner = {} if account is None else {"ExpectedBucketOwner": account}
    try:
        with_owner = s3.head_bucket(Bucket=bucket, **owner)
    except Exception as error:  # botocore makes its errors while it runs
        if code_of(error) in ("404", "NoSuchBucket"):
            return False
        if code_of(error) in ("301", "PermanentRedirect"):
            raise UserError(f"the bucket {bucket} does not lie in {region}", PLACE, _HERE.format(region)) from None
        if denied(error):
            whose = "it may be another account's" if account is None else f"it is not account {account}'s"
            raise UserError(f"no access to the bucket {bucket}: {whose}", PLACE, "name another one") from None
        with told(PLACE):
            raise
    there = with_owner.get("BucketRegion") or region
    if there != region:
        raise UserError(f"the bucket {bucket} lies in {there}, not in {region}", PLACE, _HERE.format(region))
    return True


_HERE = "SageMaker reads from its own region alone: name a bucket of {}"


def create(s3: Any, bucket: str, region: str, kms_key: str | None) -> None:
    """The bucket is there: private and encrypted."""
    where = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    rule: dict[str, Any] = {"SSEAlgorithm": "AES256"}
    if kms_key:
        rule = {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": kms_key}
    closed = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    with told(PLACE):
        s3.create_bucket(Bucket=bucket, **where)
        s3.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration=dict.fromkeys(closed, True))
        rules = [{"ApplyServerSideEncryptionByDefault": rule, "BucketKeyEnabled": bool(kms_key)}]
        s3.put_bucket_encryption(Bucket=bucket, ServerSideEncryptionConfiguration={"Rules": rules})


def holds_something(s3: Any, url: str, where: str) -> None:
    """Nothing, or UserError where no object's name begins so."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    try:
        found = s3.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)
    except Exception as error:  # botocore makes its errors while it runs
        if code_of(error) == "NoSuchBucket":
            raise UserError(f"there is no bucket {bucket}", where, "check the address") from None
        if denied(error):
            return  # the job's role may read it
        with told(where):
            raise
    if not found.get("KeyCount", len(found.get("Contents", ()))):
        raise UserError(f"nothing lies at {url}", where, "check the address")


def newest_run(s3: Any, bucket: str, prefix: str, key: str) -> int:
    """The number of an output's newest run; 0 where there is none."""
    with told(PLACE):
        pages = s3.get_paginator("list_objects_v2").paginate(
            Bucket=bucket, Prefix=f"{prefix}/runs/{key}/", Delimiter="/"
        )
        names = [one["Key"].rpartition("/")[2] for page in pages for one in page.get("Contents", ())]
    numbers = [int(found[1]) for name in names if (found := re.fullmatch(r"(\d+)\.json", name))]
    return max(numbers, default=0)


def holder(s3: Any, bucket: str, prefix: str, key: str, number: int) -> str | None:
    """The training job that was last given a run; None where nobody was."""
    try:
        answer = s3.get_object(Bucket=bucket, Key=f"{prefix}/runs/{key}/{number}.json")
        return str(json.loads(answer["Body"].read())["job"])
    except Exception as error:  # botocore makes its errors while it runs
        if code_of(error) in ("NoSuchKey", "NoSuchBucket", "404"):
            return None
        with told(PLACE):
            raise


def hold(s3: Any, bucket: str, prefix: str, runs: Mapping[str, int], job: str) -> None:
    """The runs are a training job's."""
    with told(PLACE):
        for key, number in runs.items():
            body = json.dumps({"job": job}).encode()
            s3.put_object(Bucket=bucket, Key=f"{prefix}/runs/{key}/{number}.json", Body=body)
