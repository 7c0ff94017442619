"""Fixtures of all tests: the pool of ranks lives as long as the session."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator

import pytest

from tests.pool import RANK, Pool


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


@pytest.fixture(autouse=True)
def _no_process_stays() -> Iterator[None]:
    """A process that a test leaves behind is that test's failure: the session would wait for it for ever at its end."""
    yield
    left = [process for process in multiprocessing.active_children() if process.name != RANK]
    for process in left:
        process.kill()
    assert not left, f"left behind: {left}"
