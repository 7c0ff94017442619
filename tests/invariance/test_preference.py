"""Guarantee 1 for preference jobs: a step does not depend on how its pairs are split, packed, shared or spread.

Compared are losses and gradient norms of 6 steps with SGD, as in test_loss.py. A global batch is 6 pairs, of answers
of 1 to 40 words; the reference is the model at its start, computed once before the first step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.making import tiny_model_folder, write_jsonl
from tests.pool import Pool
from tests.running import WORDS, Steps, assert_same, preference_steps
from velocity.distributed.comm import Ranks

KINDS: dict[str, dict[str, Any]] = {
    "dpo": {"kind": "dpo", "sft_weight": 0.5},
    "kto": {"kind": "kto", "desirable_weight": 1.5},
    "orpo": {"kind": "orpo"},
    "simpo": {"kind": "simpo"},
    "cpo": {"kind": "cpo"},
}
BASE: dict[str, Any] = {"task": "preference", "batch.rows": 6, "data.sequence_length": 256}
ADAPTER = {**BASE, "preference": KINDS["dpo"], "adapter": {"kind": "lora"}, "batch.micro": 2}


def words(first: int, count: int) -> str:
    return " ".join(WORDS[(first + i) % len(WORDS)] for i in range(count))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("preference")
    tiny_model_folder(made / "model", tied=True)
    rows = [
        {
            "prompt": "Why? " * (1 + i % 4),
            "chosen": words(i, 1 + 7 * i * i % 20),
            "rejected": words(i + 3, 2 + 5 * i % 17),
        }
        for i in range(30)
    ]
    write_jsonl(made / "train.jsonl", rows)
    return made


@pytest.fixture(scope="module")
def references(folder: Path) -> dict[str, Steps]:
    """One process, one micro-batch, every pair in a row of its own and its prompt computed twice."""
    plain = {"batch.micro": 12, "data.packing": False, "model": {"path": str(folder / "model"), "attention": "sdpa"}}
    return {
        name: preference_steps(Ranks(), folder, {**BASE, "preference": kind, **plain}) for name, kind in KINDS.items()
    }


def test_the_reference_learns_so_that_a_wrong_scale_would_show(references: dict[str, Steps]) -> None:
    for name, steps in references.items():
        assert abs(steps[-1][0] - steps[0][0]) > 1e-3, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("micro", [1, 3])
def test_shared_prompts_in_packed_rows_give_the_same(
    folder: Path, references: dict[str, Steps], kind: str, micro: int
) -> None:
    steps = preference_steps(Ranks(), folder, {**BASE, "preference": KINDS[kind], "batch.micro": micro})
    assert_same(steps, references[kind])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("zero", [0, 3])
def test_two_ranks_give_the_same(pool: Pool, folder: Path, references: dict[str, Steps], kind: str, zero: int) -> None:
    changes = {**BASE, "preference": KINDS[kind], "batch.micro": 1, "strategy.zero": zero}
    first, second = pool(preference_steps, folder, changes)
    assert first == second
    assert_same(first, references[kind])


@pytest.mark.parametrize("zero", [1, 2])
def test_every_stage_gives_the_same(pool: Pool, folder: Path, references: dict[str, Steps], zero: int) -> None:
    changes = {**BASE, "preference": KINDS["dpo"], "batch.micro": 2, "strategy.zero": zero}
    assert_same(pool(preference_steps, folder, changes)[0], references["dpo"])


@pytest.mark.parametrize("kind", ["dpo", "kto"])
@pytest.mark.parametrize("zero", [0, 3])
def test_a_live_reference_gives_the_same_as_a_cached_one(
    pool: Pool, folder: Path, references: dict[str, Steps], kind: str, zero: int
) -> None:
    preference = {**KINDS[kind], "reference": "live"}
    changes = {**BASE, "preference": preference, "batch.micro": 2, "strategy.zero": zero}
    assert_same(pool(preference_steps, folder, changes)[0], references[kind])


@pytest.mark.parametrize("zero", [2, 3])
def test_recomputed_activations_give_the_same(
    pool: Pool, folder: Path, references: dict[str, Steps], zero: int
) -> None:
    changes = {
        **BASE,
        "preference": KINDS["dpo"],
        "batch.micro": 2,
        "strategy.zero": zero,
        "strategy.recompute": "layers",
    }
    assert_same(pool(preference_steps, folder, changes)[0], references["dpo"])


def test_a_global_batch_smaller_than_the_ranks_leaves_one_idle_and_gives_the_same(pool: Pool, folder: Path) -> None:
    changes = {**BASE, "preference": KINDS["dpo"], "batch.rows": 1, "batch.micro": 1}
    expected = preference_steps(Ranks(), folder, changes)
    assert_same(pool(preference_steps, folder, {**changes, "strategy.zero": 3})[0], expected)


@pytest.fixture(scope="module")
def with_adapter(pool: Pool, folder: Path) -> Steps:
    """Without ZeRO, the reference scored before: what an adapter's other ways to train are compared with."""
    return pool(preference_steps, folder, {**ADAPTER, "strategy.zero": 0})[0]


@pytest.mark.parametrize("zero", [0, 2, 3])
@pytest.mark.parametrize("reference", ["cached", "live"])
def test_with_an_adapter_the_reference_is_the_model_without_it(
    pool: Pool, folder: Path, with_adapter: Steps, zero: int, reference: str
) -> None:
    preference = {**KINDS["dpo"], "reference": reference}
    changes = {**ADAPTER, "preference": preference, "strategy.zero": zero}
    assert_same(pool(preference_steps, folder, changes)[0], with_adapter)


def test_an_adapter_begins_where_the_whole_model_does_and_goes_another_way(
    references: dict[str, Steps], with_adapter: Steps
) -> None:
    assert with_adapter[0][0] == pytest.approx(references["dpo"][0][0], rel=1e-5)  # log 2 and the SFT term
    assert with_adapter[-1][0] != pytest.approx(references["dpo"][-1][0], rel=1e-3)
