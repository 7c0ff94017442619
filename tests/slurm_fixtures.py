"""Fixtures of the tests on a real Slurm: the cluster, which lives as long as a test file, and a job on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm_jobs import Job
from tests.slurm_laboratory import Slurm, slurm


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A Slurm of two hosts."""
    with slurm(tmp_path_factory.mktemp("slurm")) as made:
        yield made


@pytest.fixture
def job(cluster: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    """A job in a folder of its own, which is ours; when the test is over the cluster is empty."""
    monkeypatch.chdir(tmp_path)
    yield Job(cluster, tmp_path)
    cluster.clear()
