"""AWS's registry of images: the repository that an image is pushed to, and the password for it. It knows no tool."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from velocity.errors import UserError

SEEN = "velocity image push"


def client(region: str) -> Any:
    """AWS's client of that region; UserError where its package is missing."""
    try:
        import boto3
    except ImportError:
        what = "AWS's registry needs boto3, which is not installed"
        raise UserError(what, SEEN, "pip install 'ProfoundVelocity[aws]'") from None
    with _told():
        return boto3.client("ecr", region_name=region)


def ensure_repository(ecr: Any, repository: str) -> None:
    """The repository exists. A new one scans what is pushed, and a tag of it stays what it is."""
    with _told():
        try:
            ecr.describe_repositories(repositoryNames=[repository])
        except ecr.exceptions.RepositoryNotFoundException:
            ecr.create_repository(
                repositoryName=repository,
                imageTagMutability="IMMUTABLE",
                imageScanningConfiguration={"scanOnPush": True},
            )


def digest_of(ecr: Any, repository: str, tag: str) -> str | None:
    """The digest of the image that has the tag; None where none has."""
    with _told():
        try:
            found = ecr.describe_images(repositoryName=repository, imageIds=[{"imageTag": tag}])["imageDetails"]
        except ecr.exceptions.ImageNotFoundException:
            return None
    return str(found[0]["imageDigest"]) if found else None


def password(ecr: Any) -> str:
    """A password for the registry, which holds for twelve hours; its user is AWS."""
    with _told():
        token = ecr.get_authorization_token()["authorizationData"][0]["authorizationToken"]
    return base64.b64decode(token).decode().partition(":")[2]


@contextmanager
def _told() -> Iterator[None]:
    """What AWS refuses, or cannot be asked for, is told as the user's to mend."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        raise UserError(f"AWS refuses: {error}", SEEN, "allow it to your user or role; see the guide") from None
    except BotoCoreError as error:
        raise UserError(f"AWS cannot be asked: {error}", SEEN, "aws sts get-caller-identity says who you are") from None
