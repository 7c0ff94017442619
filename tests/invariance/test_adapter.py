"""Guarantee 1 for adapters: LoRA, rsLoRA and DoRA give the same steps on every stage and number of ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pool import Pool
from tests.running import Steps, assert_same, prepare_folder, probed_steps_on, steps_on

KINDS = ("lora", "rslora", "dora")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_folder(tmp_path_factory.mktemp("adapter"), tied=True)


@pytest.fixture(scope="module")
def references(pool: Pool, folder: Path) -> dict[str, Steps]:
    """One rank computes the whole batch: the other has nothing to do but to keep step."""
    return {kind: pool(steps_on, folder, {"adapter": {"kind": kind}, "batch.micro": 8})[0] for kind in KINDS}


def test_an_adapter_learns_so_that_a_wrong_scale_would_show(references: dict[str, Steps]) -> None:
    for kind, steps in references.items():
        assert steps[-1][0] < steps[0][0] - 0.01, kind
    assert references["lora"][1:] != references["rslora"][1:], "their scales differ"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_two_ranks_give_the_same_on_every_stage(
    pool: Pool, folder: Path, references: dict[str, Steps], kind: str, zero: int
) -> None:
    changes = {"adapter": {"kind": kind}, "batch.micro": 1, "strategy.zero": zero}
    assert_same(pool(steps_on, folder, changes)[0], references[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_probed_and_gives_the_same_though_stage_3_splits_every_matrix(
    pool: Pool, folder: Path, references: dict[str, Steps], kind: str
) -> None:
    """Ours are so small that it would keep them whole. DoRA reads weights of other layers: shards have other norms."""
    split = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
    changes = {"adapter": {"kind": kind}, "batch.micro": 1, "strategy.zero": 3, "deepspeed": split}
    assert_same(pool(probed_steps_on, folder, changes)[0], references[kind])


@pytest.mark.parametrize("zero", [1, 3])
def test_recomputed_activations_give_the_same(
    pool: Pool, folder: Path, references: dict[str, Steps], zero: int
) -> None:
    changes = {"adapter": {}, "batch.micro": 2, "strategy.zero": zero, "strategy.recompute": "layers"}
    assert_same(pool(steps_on, folder, changes)[0], references["lora"])
