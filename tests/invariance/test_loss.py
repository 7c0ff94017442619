"""Guarantee 1: a step's loss and gradient do not depend on how the global batch is split, packed or spread.

Compared are losses and gradient norms of 6 steps with SGD, whose weights move with the gradient's scale: a wrong one
shows in every later loss. The rows train on 2 to about 150 tokens each.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pool import Pool
from tests.running import (
    Steps,
    assert_same,
    loader_of,
    make_job,
    plain_engine,
    prepare_folder,
    steps_on,
    take_steps,
)
from velocity.distributed.comm import Ranks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_folder(tmp_path_factory.mktemp("invariance"), tied=True)


@pytest.fixture(scope="module")
def reference(folder: Path) -> Steps:
    job = make_job(folder, {})
    return take_steps(job, plain_engine(job), Ranks())


def test_the_reference_learns_so_that_a_wrong_scale_would_show(reference: Steps) -> None:
    assert reference[-1][0] < reference[0][0] - 0.1


@pytest.mark.parametrize("micro", [1, 4, 8])
def test_one_process_gives_the_same_for_any_number_of_micro_batches(folder: Path, reference: Steps, micro: int) -> None:
    job = make_job(folder, {"batch.micro": micro})
    assert_same(take_steps(job, plain_engine(job), Ranks()), reference)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.parametrize("micro", [4, 1], ids=["accumulation 1", "accumulation 4"])
def test_two_ranks_give_the_same_as_one_process(
    pool: Pool, folder: Path, reference: Steps, zero: int, micro: int
) -> None:
    first, second = pool(steps_on, folder, {"strategy.zero": zero, "batch.micro": micro})
    assert first == second
    assert_same(first, reference)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_unpacked_rows_give_the_same_on_two_ranks(pool: Pool, folder: Path, zero: int) -> None:
    # 5 rows on 2 ranks in micro-batches of 1: the second rank's last micro-batch is empty
    changes = {"data.packing": False, "batch.rows": 5, "batch.micro": 1}
    job = make_job(folder, changes)
    expected = take_steps(job, plain_engine(job), Ranks())
    assert_same(pool(steps_on, folder, {**changes, "strategy.zero": zero})[0], expected)


@pytest.mark.parametrize("zero", [1, 3])
def test_recomputed_activations_give_the_same(pool: Pool, folder: Path, reference: Steps, zero: int) -> None:
    assert_same(pool(steps_on, folder, {"strategy.zero": zero, "strategy.recompute": "layers"})[0], reference)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_clipped_steps_are_the_same(pool: Pool, folder: Path, zero: int) -> None:
    optimizer = {"kind": "sgd", "learning_rate": 0.5, "schedule": "constant", "warmup": 0, "gradient_clipping": 0.1}
    job = make_job(folder, {"optimizer": optimizer})
    expected = take_steps(job, plain_engine(job), Ranks())
    assert_same(pool(steps_on, folder, {"optimizer": optimizer, "strategy.zero": zero})[0], expected)


def test_a_packed_batch_has_the_loss_and_gradient_of_its_sequences_one_by_one(folder: Path) -> None:
    packed = make_job(folder, {"batch.rows": 100})
    unpacked = make_job(folder, {"data.packing": False, "batch.rows": 60})  # one batch is the whole data set
    # a packed epoch has fewer than 100 rows, so its batch holds parts of the next: compare one epoch's worth
    rows = loader_of(packed, Ranks()).epoch_rows(0)
    packed = make_job(folder, {"batch.rows": len(rows)})
    one = take_steps(packed, plain_engine(packed), Ranks())
    other = take_steps(unpacked, plain_engine(unpacked), Ranks())
    assert_same(one, other)
