"""Guarantee 1 with rows spread over sequence ranks: same losses and gradient norms, packed sequences apart.

A rank's part of the tokens begins and ends in the middle of sequences. SGD, as in test_loss.py; 12 query heads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.invariance.test_preference import BASE, KINDS, words
from tests.making import write_jsonl
from tests.pool import Pool
from tests.running import (
    Steps,
    assert_same,
    built_on,
    loader_of,
    make_job,
    plain_engine,
    prepare_folder,
    save_engine,
    steps_on,
    take_steps,
)
from tests.running import preference_steps as steps_of_pairs
from velocity.checkpoints.pieces import restore
from velocity.distributed.comm import Ranks
from velocity.models.probe import isolation_gap

SPREAD = {"strategy.sequence": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_folder(tmp_path_factory.mktemp("sequence"), tied=True)


@pytest.fixture(scope="module")
def reference(folder: Path) -> Steps:
    job = make_job(folder, {})
    return take_steps(job, plain_engine(job), Ranks())


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_rows_spread_over_two_ranks_give_the_same_as_whole(
    pool: Pool, folder: Path, reference: Steps, zero: int
) -> None:
    first, second = pool(steps_on, folder, {**SPREAD, "strategy.zero": zero})
    assert first == second
    assert_same(first, reference)


@pytest.mark.parametrize(
    "changes",
    [{"batch.micro": 1}, {"strategy.recompute": "layers"}, {"data.packing": False, "batch.rows": 5, "batch.micro": 1}],
    ids=["accumulation", "recomputation", "unpacked"],
)
def test_so_do_other_ways_through_the_batch(pool: Pool, folder: Path, changes: dict[str, Any]) -> None:
    job = make_job(folder, changes)
    expected = take_steps(job, plain_engine(job), Ranks())
    assert_same(pool(steps_on, folder, {**SPREAD, "strategy.zero": 3, **changes})[0], expected)


@pytest.mark.parametrize("zero", [1, 3])
def test_adamw_and_clipping_give_the_same(pool: Pool, folder: Path, zero: int) -> None:
    optimizer = {"kind": "adamw", "learning_rate": 1e-3, "gradient_clipping": 0.1}
    job = make_job(folder, {"optimizer": optimizer})
    expected = take_steps(job, plain_engine(job), Ranks())
    assert_same(pool(steps_on, folder, {**SPREAD, "optimizer": optimizer, "strategy.zero": zero})[0], expected)


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_key_heads_may_be_fewer_than_ranks(pool: Pool, tmp_path: Path, key_heads: int) -> None:
    folder = prepare_folder(tmp_path, heads=4, kv_heads=key_heads)
    job = make_job(folder, {})
    expected = take_steps(job, plain_engine(job), Ranks())
    assert_same(pool(steps_on, folder, {**SPREAD, "strategy.zero": 1})[0], expected)


def test_one_long_document_over_two_ranks_has_the_loss_it_has_on_one(pool: Pool, folder: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"text": "Check the length of every input. " * 300}])
    changes = {
        "task": "pretrain", "data.train": [{"path": str(tmp_path / "train.jsonl")}], "data.sequence_length": 2048,
        "data.packing": False, "batch.rows": 1, "batch.micro": 1,
    }  # fmt: skip
    job = make_job(folder, changes)
    expected = take_steps(job, plain_engine(job), Ranks())
    assert_same(pool(steps_on, folder, {**SPREAD, **changes, "strategy.zero": 3})[0], expected)


def _leak(ranks: Ranks, folder: Path) -> float:
    built = built_on(make_job(folder, {**SPREAD, "strategy.zero": 1}), ranks)
    gap = isolation_gap(built.engine, built.scorer.vocabulary)
    built.engine.engine.destroy()
    return gap


def test_packed_sequences_do_not_see_each_other_across_ranks(pool: Pool, folder: Path) -> None:
    # rounding: the products are the same, whatever stands beside them
    assert max(pool(_leak, folder)) < 1e-5


def _own_tokens(ranks: Ranks, folder: Path) -> list[int]:
    """How many tokens each layer saw of the first micro-batch, and how many it has."""
    job = make_job(folder, {**SPREAD, "strategy.zero": 1})
    built, batch = built_on(job, ranks), loader_of(job, ranks).micro_batches(0)[0]
    seen: list[int] = []
    layer = built.scorer.model.model.layers[0]
    hook = layer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].shape[1]))
    with torch.no_grad():
        built.engine(batch)
    hook.remove()
    built.engine.engine.destroy()
    return [*seen, batch.tokens]


def test_a_rank_computes_half_of_the_tokens(pool: Pool, folder: Path) -> None:
    for seen, whole in pool(_own_tokens, folder):
        assert seen == -(-whole // 2)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    made = tmp_path_factory.mktemp("pairs")
    (made / "model").symlink_to(folder / "model")
    write_jsonl(made / "train.jsonl", [
        {"prompt": "Why? " * (1 + i % 4), "chosen": words(i, 1 + 7 * i * i % 20), "rejected": words(i + 3, 2 + i % 17)}
        for i in range(30)
    ])  # fmt: skip
    return made


@pytest.mark.parametrize("kind", ["dpo", "kto", "orpo"])
def test_answers_that_share_a_prompt_and_lie_on_two_ranks_give_the_same(pool: Pool, pairs: Path, kind: str) -> None:
    changes = {**BASE, "preference": KINDS[kind]}
    expected = steps_of_pairs(Ranks(), pairs, {**changes, "batch.micro": 6})
    for zero in (1, 3):
        spread = {**changes, **SPREAD, "strategy.zero": zero, "batch.micro": 2}
        assert_same(pool(steps_of_pairs, pairs, spread)[0], expected)


@pytest.mark.parametrize(
    "changes",
    [{"adapter": {"kind": "lora"}}, {"preference": {**KINDS["dpo"], "reference": "live"}}],
    ids=["adapter", "live reference"],
)
@pytest.mark.parametrize("zero", [2, 3])
def test_an_adapter_or_a_live_reference_is_spread_like_the_model(
    pool: Pool, pairs: Path, changes: dict[str, Any], zero: int
) -> None:
    changes = {**BASE, "preference": KINDS["dpo"], "batch.micro": 2, "strategy.zero": zero, **changes}
    expected = pool(steps_of_pairs, pairs, changes)[0]
    assert_same(pool(steps_of_pairs, pairs, {**changes, **SPREAD})[0], expected)


def _resumed(ranks: Ranks, folder: Path, checkpoint: Path) -> Steps:
    """Three steps without a spread, saved; three more, loaded, with one."""
    steps: Steps = []
    for spread in (1, 2):
        job = make_job(folder, {"strategy.zero": 2, "strategy.sequence": spread})
        engine = built_on(job, ranks).engine
        if spread == 2:
            restore(engine, checkpoint)
        steps += take_steps(job, engine, ranks, steps=3, start=len(steps))
        save_engine(engine, checkpoint, ranks)
        engine.engine.destroy()
    return steps


def test_a_run_goes_on_spread_over_ranks_that_shared_data_before(
    pool: Pool, folder: Path, reference: Steps, tmp_path: Path
) -> None:
    assert_same(pool(_resumed, folder, tmp_path / "checkpoint")[0], reference)
