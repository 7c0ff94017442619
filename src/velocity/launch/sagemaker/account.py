"""Amazon's services for one job: clients by name, and their refusals as errors of ours. It knows no job."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from velocity.errors import JobError, UserError

Clients = Callable[[str], Any]  # name of a service → its client, as boto3 makes them

# Refusals that asking again does not change; others may be the network's, or the service's own.
OURS = {
    "AccessDenied", "AccessDeniedException", "ValidationException", "ResourceInUse", "ResourceLimitExceeded",
    "UnrecognizedClientException", "InvalidClientTokenId", "ExpiredToken", "ExpiredTokenException",
    "SignatureDoesNotMatch", "InvalidParameterValue", "ResourceNotFound",
}  # fmt: skip
FIXES = {
    "ResourceLimitExceeded": "ask for a higher quota in Service Quotas, or choose another launch.instance",
    "ResourceInUse": "run the same command again, for another name",
    "ExpiredToken": "log in again",
    "ExpiredTokenException": "log in again",
}


def clients_of(region: str | None) -> Clients:
    """Clients of a region; of the one that AWS's own tools find, if left out. UserError where boto3 is not there."""
    if find_spec("boto3") is None:
        raise UserError("target sagemaker needs boto3", "launch.kind", "pip install 'ProfoundVelocity[aws]'")
    import boto3

    session = boto3.session.Session(region_name=region)
    if session.region_name is None:
        fix = "set launch.region, AWS_DEFAULT_REGION, or run: aws configure"
        raise UserError("no region is known", "launch.region", fix)
    known: dict[str, Any] = {}

    def client(name: str) -> Any:
        if name not in known:
            known[name] = session.client(name)
        return known[name]

    return client


def code_of(error: Exception) -> str:
    """Amazon's word for a refusal; nothing where it is another error."""
    return str(getattr(error, "response", {}).get("Error", {}).get("Code", ""))


def denied(error: Exception) -> bool:
    """True where the answer is that we may not ask."""
    return code_of(error) in ("AccessDenied", "AccessDeniedException", "403", "Forbidden", "UnauthorizedOperation")


@contextmanager
def told(where: str) -> Iterator[None]:
    """What AWS refuses is UserError, and what fails on the way JobError: with its words, and without a traceback."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

    try:
        yield
    except (NoCredentialsError, PartialCredentialsError):
        fix = "run: aws configure, or aws sso login; or set AWS_PROFILE"
        raise UserError("no credentials for AWS are found", where, fix) from None
    except ClientError as error:
        code = code_of(error)
        said = re.sub(r"\s+", " ", str(error.response.get("Error", {}).get("Message", error)))
        kind = UserError if code in OURS else JobError
        raise kind(f"AWS refuses {error.operation_name}: {code}: {said}", where, FIXES.get(code, "")) from None
    except BotoCoreError as error:
        raise JobError(f"AWS does not answer: {error}", where, "check the network, and launch.region") from None
