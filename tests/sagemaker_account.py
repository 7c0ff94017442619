"""An account of AWS for tests: moto's server, with a role, an image and a secret in it."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import fsspec
import pytest
from moto.server import ThreadedMotoServer

ACCOUNT, REGION = "123456789012", "eu-central-1"
KEY, SECRET_KEY = "AKIAPLANTED7EXAMPLE0", "planted/secret+that/lies+in/no/request/0001"
PLANTED = "hf_" + "PlantedSecretOfTheVault" * 2
TRUST = {
    "Statement": [{"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}]
}
MANIFEST = {
    "schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
    "config": {
        "mediaType": "application/vnd.docker.container.image.v1+json", "size": 1, "digest": "sha256:" + "0" * 64,
    },
    "layers": [],
}  # fmt: skip
MOTO_SIGNED = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1", "AWS_DEFAULT_REGION": REGION,
               "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}  # fmt: skip
SESSION = boto3.session.Session(KEY, SECRET_KEY, region_name=REGION)  # one: it reads what services are like


class Account:
    """What tests ask of it."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._making, self._clients = threading.Lock(), dict[str, Any]()
        self.role = str(
            self.client("iam").create_role(RoleName="velocity-job", AssumeRolePolicyDocument=json.dumps(TRUST))["Role"][
                "Arn"
            ]
        )
        self.client("iam").create_role(RoleName="lambda-only", AssumeRolePolicyDocument=json.dumps({"Statement": []}))
        self.client("ecr").create_repository(repositoryName="velocity")
        put = self.client("ecr").put_image(
            repositoryName="velocity", imageManifest=json.dumps(MANIFEST), imageTag="0.1.0"
        )
        self.image = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/velocity:0.1.0"
        self.pinned = f"{self.image.rpartition(':')[0]}@{put['image']['imageId']['imageDigest']}"
        made = self.client("secretsmanager").create_secret(Name="hub", SecretString=PLANTED)
        self.secret = str(made["ARN"])

    def client(self, name: str) -> Any:
        """A client of the account's."""
        with self._making:  # threads of the simulator share them
            if name not in self._clients:
                self._clients[name] = SESSION.client(name, endpoint_url=self.endpoint)
            return self._clients[name]

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """Names of the objects in a bucket."""
        pages = self.client("s3").get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [one["Key"] for page in pages for one in page.get("Contents", ())]

    def objects(self, bucket: str) -> dict[str, bytes]:
        """All that lies in a bucket."""
        s3 = self.client("s3")
        return {key: s3.get_object(Bucket=bucket, Key=key)["Body"].read() for key in self.keys(bucket)}


@contextmanager
def account(address: str = "127.0.0.1", reached_at: str | None = None) -> Iterator[Account]:
    """A new account, and in the environment what leads there."""
    server = ThreadedMotoServer(address, 0, verbose=False)
    server.start()
    endpoint = f"http://{reached_at or address}:{server.get_host_and_port()[1]}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**MOTO_SIGNED, "AWS_ENDPOINT_URL": endpoint}.items():
            patch.setenv(name, value)
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")).close()
        fsspec.get_filesystem_class("s3").clear_instance_cache()  # they know the endpoint of when they were made
        try:
            yield Account(endpoint)
        finally:
            fsspec.get_filesystem_class("s3").clear_instance_cache()
            server.stop()
