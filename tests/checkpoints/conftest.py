"""One S3 server for all tests of mirrors; credentials stand in the environment alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.checkpoints.mirrored import KEY, SECRET, Server


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Server]:
    """moto's server, and in the environment what leads there."""
    server = Server()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}",
            "AWS_MAX_ATTEMPTS": "1",  # s3fs tries five times, and the mirror again
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            patch.setenv(name, value)
        yield server
    server.stop()
    logging.getLogger("werkzeug").removeHandler(server)


@pytest.fixture
def s3(s3_server: Server) -> Server:
    """The server, with an empty log."""
    s3_server.requests.clear()
    return s3_server
