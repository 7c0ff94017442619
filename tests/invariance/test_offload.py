"""What waits in host memory or on a disk changes no step: losses and gradient norms are those of one plain process."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pool import Pool
from tests.running import (
    Steps,
    assert_same,
    deepspeed_engine,
    loader_of,
    make_job,
    plain_engine,
    prepare_folder,
    save_engine,
    steps_on,
    take_steps,
)  # fmt: skip
from velocity.checkpoints.pieces import restore
from velocity.distributed.comm import Ranks
from velocity.objectives.build import build_objective

PLACES = {
    "zero 1": {"strategy.zero": 1, "strategy.offload": {"optimizer": "cpu", "parameters": "none"}},
    "zero 2": {"strategy.zero": 2, "strategy.offload": {"optimizer": "cpu", "parameters": "none"}},
    "zero 3": {"strategy.zero": 3, "strategy.offload": {"optimizer": "cpu", "parameters": "none"}},
    "zero 3 parameters": {"strategy.zero": 3, "strategy.offload": {"optimizer": "none", "parameters": "cpu"}},
    "zero 3 both": {"strategy.zero": 3, "strategy.offload": {"optimizer": "cpu", "parameters": "cpu"}},
}
# clipping is active in both, and the schedule moves
SGD = {"kind": "sgd", "learning_rate": 0.5, "schedule": "linear", "warmup": 0, "gradient_clipping": 0.5}
ADAMW = {"kind": "adamw", "learning_rate": 3e-3, "schedule": "linear", "warmup": 0, "gradient_clipping": 0.5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_folder(tmp_path_factory.mktemp("offload"), tied=True)


@pytest.fixture(scope="module")
def references(folder: Path) -> dict[str, Steps]:
    jobs = {kind["kind"]: make_job(folder, {"optimizer": kind}) for kind in (SGD, ADAMW)}
    return {str(kind): take_steps(job, plain_engine(job), Ranks()) for kind, job in jobs.items()}


def test_the_reference_is_clipped_and_learns(references: dict[str, Steps]) -> None:
    for steps in references.values():
        assert min(norm for _, norm in steps) > 0.5
        assert steps[-1][0] < steps[0][0] - 0.05


@pytest.mark.parametrize("optimizer", [SGD, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("place", PLACES)
def test_two_ranks_that_offload_give_the_same_as_one_process(
    pool: Pool, folder: Path, references: dict[str, Steps], place: str, optimizer: dict[str, Any]
) -> None:
    first, second = pool(steps_on, folder, {"optimizer": optimizer, "batch.micro": 2, **PLACES[place]})
    assert first == second
    assert_same(first, references[optimizer["kind"]])


def kept(ranks: Ranks, folder: Path, changes: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What becomes of three steps after `save`, of three after `load`, and of one with a loss that is no number."""
    job = make_job(folder, changes)
    engine, loader = deepspeed_engine(job, ranks), loader_of(job, ranks)
    take_steps(job, engine, ranks, 2)
    save_engine(engine, path, ranks)
    ahead = take_steps(job, engine, ranks, 3)
    weights = engine.weights()
    other = deepspeed_engine(job, ranks)
    restore(other, path)
    again = take_steps(job, other, ranks, 3)
    same = {name: torch.equal(value, weights[name]) for name, value in other.weights().items()}
    objective = build_objective(job)

    def broken(policy: Any, batch: Any) -> Any:
        loss = objective(policy, batch)
        factor = math.inf if ranks.rank == ranks.world_size - 1 else 1.0
        return type(loss)(**{**vars(loss), "total": loss.total * factor})

    stats = other.learn(broken, loader.micro_batches(0), 1, 0.1)[1]
    after = other.weights()
    unmoved = all(torch.equal(value, weights[name]) for name, value in after.items())
    for one in (engine, other):
        one.engine.destroy()
    return {"ahead": ahead, "again": again, "same": same, "skipped": stats.skipped, "unmoved": unmoved}


@pytest.mark.parametrize("place", PLACES)
def test_what_is_saved_goes_on_bit_for_bit_and_a_loss_that_is_no_number_moves_nothing(
    pool: Pool, folder: Path, tmp_path: Path, place: str
) -> None:
    results = pool(kept, folder, {"optimizer": ADAMW, **PLACES[place]}, tmp_path / "state")
    for result in results:
        assert result["ahead"] == result["again"]
        assert result["skipped"] and result["unmoved"]
    same = results[0]["same"]
    assert all(same.values()) and any("embed_tokens" in name for name in same) and len(same) > 10
    assert not results[1]["same"], "the weights come to rank 0 alone"


@pytest.mark.parametrize("zero", [1, 3])
def test_what_recomputed_layers_keep_may_wait_in_host_memory(
    pool: Pool, folder: Path, references: dict[str, Steps], zero: int
) -> None:
    offload = {"optimizer": "none", "parameters": "none", "activations": "cpu"}
    changes = {"strategy.zero": zero, "strategy.recompute": "layers", "strategy.offload": offload, "optimizer": SGD}
    assert_same(pool(steps_on, folder, changes)[0], references["sgd"])


@pytest.mark.slow  # DeepSpeed compiles its own AdamW, for minutes the first time
@pytest.mark.parametrize("ratio", [0.5, 0.9])
def test_a_step_that_is_split_between_host_and_device_is_the_same(
    pool: Pool, folder: Path, references: dict[str, Steps], ratio: float
) -> None:
    offload = {"optimizer": "cpu", "parameters": "none", "ratio": ratio}
    changes = {"strategy.zero": 3, "strategy.offload": offload, "optimizer": ADAMW}
    assert_same(pool(steps_on, folder, changes)[0], references["adamw"])
