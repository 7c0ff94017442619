"""The DeepSpeed engine on two ranks: resume bit for bit, whole weights, skipped steps, held-out scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pool import Pool
from tests.running import (
    Recorder,
    deepspeed_engine,
    loader_of,
    make_job,
    parts_of,
    plain_engine,
    prepare_folder,
    take_steps,
)
from velocity.data.layout import build_layout
from velocity.data.loader import Share, eval_rows, split
from velocity.distributed.comm import Ranks
from velocity.objectives.causal_lm import CausalLM
from velocity.training.checkpoint import Checkpoints, TrainState
from velocity.training.evaluate import evaluate
from velocity.training.trainer import Plan, Trainer

ADAMW = {"kind": "adamw", "learning_rate": 1e-3, "warmup": 0.2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_folder(tmp_path_factory.mktemp("engine"))


def _resume(ranks: Ranks, folder: Path, output: Path, changes: dict[str, Any]) -> list[list[tuple[float, float]]]:
    """Losses and norms of steps 3 to 6: undisturbed, and by an engine that loads what step 3 left."""
    job = make_job(folder, {"optimizer": ADAMW, "output": str(output), **changes})
    straight, resumed = Recorder(), Recorder()
    checkpoints = Checkpoints(output / "checkpoints", job.checkpoint, ranks)
    plan = Plan(6, eval_every=10**9, checkpoint_every=3)
    engine = deepspeed_engine(job, ranks)
    Trainer(parts_of(job, engine, ranks, straight), plan, TrainState()).run()
    engine.engine.destroy()
    if ranks.first:
        (output / "checkpoints" / "step-00000006" / "COMMITTED").unlink()
    torch.distributed.barrier()
    other = deepspeed_engine(job, ranks)
    state = checkpoints.resume(other)
    assert state.step == 3
    Trainer(parts_of(job, other, ranks, resumed), plan, state).run()
    other.engine.destroy()
    return [[(line["loss"], line["grad_norm"]) for line in lines[-3:]] for lines in (straight.lines, resumed.lines)]


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_a_loaded_checkpoint_gives_the_same_bits(pool: Pool, folder: Path, tmp_path: Path, zero: int) -> None:
    straight, resumed = pool(_resume, folder, tmp_path, {"strategy.zero": zero})[0]
    assert resumed == straight


@pytest.mark.parametrize("zero", [1, 3])
def test_a_loaded_checkpoint_gives_the_same_bits_in_16_bit(pool: Pool, folder: Path, tmp_path: Path, zero: int) -> None:
    straight, resumed = pool(_resume, folder, tmp_path, {"strategy.zero": zero, "strategy.precision": "bf16"})[0]
    assert resumed == straight


def _weights(ranks: Ranks, folder: Path, zero: int) -> dict[str, torch.Tensor]:
    job = make_job(folder, {"strategy.zero": zero})
    engine = deepspeed_engine(job, ranks)
    take_steps(job, engine, ranks, 2)
    weights = dict(engine.weights())
    engine.engine.destroy()
    return weights


@pytest.mark.parametrize("zero", [0, 3])
def test_whole_weights_come_back_on_the_first_rank(pool: Pool, folder: Path, zero: int) -> None:
    job = make_job(folder, {})
    plain = plain_engine(job)
    take_steps(job, plain, Ranks(), 2)
    first, second = pool(_weights, folder, zero)
    assert second == {}
    assert first.keys() == plain.weights().keys()
    for name, value in plain.weights().items():
        torch.testing.assert_close(first[name], value, atol=1e-5, rtol=1e-5)


def _poisoned(ranks: Ranks, folder: Path, changes: dict[str, Any]) -> tuple[list[bool], bool]:
    """Of three steps, the second with a NaN loss on rank 1 alone: which were skipped, and was nothing changed?"""
    job = make_job(folder, changes)
    engine = deepspeed_engine(job, ranks)
    loader = loader_of(job, ranks)
    skipped, before = [], None
    for step in range(3):
        poisoned = step == 1
        if poisoned:
            before = {name: value.clone() for name, value in engine.weights().items()}
        for batch in loader.micro_batches(step):
            factor = float("nan") if poisoned and ranks.rank == 1 else 1.0
            engine.backward(CausalLM()(engine, batch).total * factor / 100)
        skipped.append(engine.step(0.01).skipped)
        if poisoned:
            after = engine.weights()
            stayed = all(torch.equal(after[name], value) for name, value in (before or {}).items())
    engine.engine.destroy()
    return skipped, stayed


@pytest.mark.parametrize(
    "changes",
    [{"strategy.zero": zero, "strategy.precision": precision}
     for zero, precision in [*((z, "fp32") for z in range(4)), *((z, "bf16") for z in (1, 2, 3))]],
    ids=str,
)  # fmt: skip
def test_a_gradient_that_is_not_finite_on_one_rank_skips_the_step_on_all(
    pool: Pool, folder: Path, changes: dict[str, Any]
) -> None:
    for skipped, stayed in pool(_poisoned, folder, changes):
        assert skipped == [False, True, False]
        assert stayed


def _held_out(ranks: Ranks, folder: Path, zero: int) -> dict[str, dict[str, float]]:
    job = make_job(folder, {"strategy.zero": zero})
    corpus = loader_of(job, ranks).corpus
    engine = deepspeed_engine(job, ranks)
    layout = build_layout(job)
    share = Share(ranks.rank, ranks.world_size, 3)
    rows = split(corpus, eval_rows(corpus, layout, job.data.sequence_length), share, layout)
    found = evaluate(engine, CausalLM(), {"train": rows})
    engine.engine.destroy()
    return found


@pytest.mark.parametrize("zero", [1, 3])
def test_held_out_loss_is_the_same_on_one_and_two_ranks(pool: Pool, folder: Path, zero: int) -> None:
    job = make_job(folder, {})
    corpus = loader_of(job, Ranks()).corpus
    layout = build_layout(job)
    rows = split(corpus, eval_rows(corpus, layout, 256), Share(micro=1), layout)
    expected = evaluate(plain_engine(job), CausalLM(), {"train": rows})["train"]
    first, second = pool(_held_out, folder, zero)
    assert first == second
    assert first["train"]["tokens"] == expected["tokens"]
    assert first["train"]["loss"] == pytest.approx(expected["loss"], abs=1e-5)


def _sixteen(ranks: Ranks, folder: Path, precision: str) -> list[tuple[float, float]]:
    job = make_job(folder, {"strategy.zero": 2, "strategy.precision": precision})
    engine = deepspeed_engine(job, ranks)
    steps = take_steps(job, engine, ranks, 4)
    engine.engine.destroy()
    return steps


def test_bf16_follows_fp32_to_its_rounding(pool: Pool, folder: Path) -> None:
    job = make_job(folder, {})
    reference = take_steps(job, plain_engine(job), Ranks(), 4)
    for (loss, norm), (expected, expected_norm) in zip(pool(_sixteen, folder, "bf16")[0], reference, strict=True):
        assert loss == pytest.approx(expected, rel=0.01)  # bf16 has 8 bits of mantissa: 0.4 % a rounding
        assert norm == pytest.approx(expected_norm, rel=0.03)
