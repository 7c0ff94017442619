"""The planner's peak is within a tenth of what is measured: tensors of real steps, on one rank and on two."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.planner.measuring import CONFIGURATIONS, Configuration, LiveStorages, measured_bytes, predicted_bytes
from tests.planner.measuring import write_model as write
from tests.pool import Pool


@pytest.fixture(scope="module")
def alone() -> Iterator[Pool]:
    """One rank."""
    made = Pool(1)
    yield made
    made.close()


@pytest.fixture(scope="module", name="folders")
def _folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of each shape."""
    shapes = {one.shape for one in CONFIGURATIONS}
    return {shape: write(tmp_path_factory.mktemp(shape), shape) for shape in shapes}


def test_there_are_enough_configurations():
    assert len(CONFIGURATIONS) >= 12
    assert {one.zero for one in CONFIGURATIONS} == {0, 1, 2, 3}


def test_a_storage_counts_once_while_it_lives():
    live = LiveStorages()
    with live:
        one = torch.ones(1000)
        view = one[10:]
        assert live.bytes == 4000
        two = one + 1
        assert (live.bytes, live.highest) == (8000, 8000)
        del one, view
        assert (live.bytes, live.highest) == (4000, 8000)
        two.add_(1)
    assert live.bytes == 4000


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)
def test_the_predicted_peak_is_within_a_tenth_of_the_measured_one(
    configuration: Configuration, folders: dict[str, Path], pool: Pool, alone: Pool
):
    folder = folders[configuration.shape]
    measured = measured_bytes(alone if configuration.processes == 1 else pool, folder, configuration)
    assert predicted_bytes(folder, configuration) == pytest.approx(measured, rel=0.1)
