"""Fixtures of all tests: the pool of ranks lives as long as the session."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.pool import RANK, Pool

if TYPE_CHECKING:
    from tests.checkpoints.mirrored import Server


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    """Two ranks with a process group between them."""
    made = Pool(2)
    yield made
    made.close()


@pytest.fixture(scope="session")
def pool1() -> Iterator[Pool]:
    """One rank alone, under DeepSpeed."""
    made = Pool(1)
    yield made
    made.close()


@pytest.fixture(scope="session")
def pool4() -> Iterator[Pool]:
    """Four ranks: data beside a second axis."""
    made = Pool(4)
    yield made
    made.close()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Server]:
    """One S3 server for all tests of mirrors, and in the environment alone what leads there."""
    from tests.checkpoints.mirrored import KEY, SECRET, Server  # not every session needs moto

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


@pytest.fixture(autouse=True)
def _no_process_stays() -> Iterator[None]:
    """A process that a test leaves behind is that test's failure: the session would wait for it for ever at its end."""
    yield
    left = [process for process in multiprocessing.active_children() if process.name != RANK]
    for process in left:
        process.kill()
    assert not left, f"left behind: {left}"
