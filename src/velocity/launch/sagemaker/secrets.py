"""Secrets of a job: the request holds where they lie, and each node fetches them with its role. None is printed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from velocity.errors import UserError

# Not a name that calls its value a secret: the address is none, and is shown where it leads nowhere.
VARIABLE = "VELOCITY_FROM_ARN_"


def variables_of(secrets: Mapping[str, str]) -> dict[str, str]:
    """What a node's environment says of the secrets: one variable each, for a value has room for one address."""
    return {f"{VARIABLE}{number}": f"{name}={arn}" for number, (name, arn) in enumerate(secrets.items(), 1)}


def fetch_secrets(environment: Mapping[str, str], client: Callable[[str], Any] | None = None) -> dict[str, str]:
    """The job's secrets by variable, to put into the environment first of all; UserError where one is not to be had.

    `client` gives the Secrets Manager of a region. A secret may be a text, or an object that has the variable's name.
    """
    wanted = [text.partition("=") for name, text in sorted(environment.items()) if name.startswith(VARIABLE)]
    found = {}
    for variable, _, arn in wanted:
        region = arn.split(":")[3] if arn.count(":") > 3 else ""
        try:
            text = (client or _secrets_manager)(region).get_secret_value(SecretId=arn)["SecretString"]
        except Exception as error:  # botocore's are made while it runs; their texts name no value
            why = re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")
            fix = "the job's role needs secretsmanager:GetSecretValue on it"
            raise UserError(f"the secret for {variable} is not to be had: {why}", arn, fix) from None
        found[variable] = _value(text, variable, arn)
    return found


def _value(text: str, variable: str, arn: str) -> str:
    try:
        content = json.loads(text)
    except ValueError:
        return text
    if not isinstance(content, dict):
        return text
    if not isinstance(content.get(variable), str):
        what = f"the secret holds several values, and none is named {variable}"
        raise UserError(what, arn, f"give it a text, or an object with {variable}")
    return str(content[variable])


def _secrets_manager(region: str) -> Any:
    import botocore.session  # which s3fs brings: a container has it without boto3

    return botocore.session.get_session().create_client("secretsmanager", region_name=region or None)
