"""Fixtures of all tests: the pool of ranks lives as long as the session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.pool import Pool


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    """Two ranks with a process group between them."""
    made = Pool(2)
    yield made
    made.close()
