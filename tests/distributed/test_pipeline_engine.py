"""The pipeline engine on two ranks: resume bit for bit, whole weights, skipped steps, held-out scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.pool import Pool
from tests.running import Recorder, built_on, loader_of, make_job, parts_of, plain_engine, prepare_folder, take_steps
from velocity.batch import Batch
from velocity.data.collate import collate
from velocity.data.layout import build_layout
from velocity.data.loader import Share, eval_rows, split
from velocity.data.tokenizer import load_tokenizer
from velocity.distributed.comm import Ranks
from velocity.distributed.pipeline_engine import Scored
from velocity.models.export import save_model
from velocity.objectives.causal_lm import CausalLM
from velocity.objectives.objective import LossOutput, Policy
from velocity.training.checkpoint import Checkpoints, TrainState
from velocity.training.evaluate import evaluate
from velocity.training.trainer import Plan, Trainer

PIPELINE = {"strategy.zero": 1, "strategy.pipeline": 2}
ADAMW = {"kind": "adamw", "learning_rate": 1e-3, "warmup": 0.2}


@pytest.fixture(scope="module", params=["tied", "untied"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_folder(tmp_path_factory.mktemp("stages"), tied=request.param == "tied")


def _resume(ranks: Ranks, folder: Path, output: Path, precision: str) -> list[list[tuple[float, float]]]:
    """Losses and norms of steps 3 and 4: undisturbed, and by an engine that loads what step 2 left."""
    job = make_job(folder, {**PIPELINE, "optimizer": ADAMW, "output": str(output), "strategy.precision": precision})
    straight, resumed, plan = Recorder(), Recorder(), Plan(4, eval_every=10**9, checkpoint_every=2)
    engine = built_on(job, ranks).engine
    Trainer(parts_of(job, engine, ranks, straight), plan, TrainState()).run()
    engine.engine.destroy()
    if ranks.first:
        (output / "checkpoints" / "step-00000004" / "COMMITTED").unlink()
    torch.distributed.barrier()
    other = built_on(job, ranks).engine
    state = Checkpoints(output / "checkpoints", job.checkpoint, ranks).resume(other)
    assert state.step == 2
    Trainer(parts_of(job, other, ranks, resumed), plan, state).run()
    other.engine.destroy()
    return [[(line["loss"], line["grad_norm"]) for line in lines[-2:]] for lines in (straight.lines, resumed.lines)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_loaded_checkpoint_gives_the_same_bits(pool: Pool, folder: Path, tmp_path: Path, precision: str) -> None:
    for straight, resumed in pool(_resume, folder, tmp_path, precision):
        assert resumed == straight


def _trained(ranks: Ranks, folder: Path, output: Path) -> dict[str, torch.Tensor]:
    """The weights after two steps; the first rank leaves the model, too."""
    job = make_job(folder, PIPELINE)
    built = built_on(job, ranks)
    take_steps(job, built.engine, ranks, 2)
    weights = dict(built.engine.weights())
    if ranks.first:
        save_model(built.scorer.model, weights, load_tokenizer(Path(job.model.path)), output, "a card")
    built.engine.engine.destroy()
    return weights


def test_whole_weights_come_back_on_the_first_rank_and_make_a_plain_model(
    pool: Pool, folder: Path, tmp_path: Path
) -> None:
    job = make_job(folder, {})
    plain = plain_engine(job)
    take_steps(job, plain, Ranks(), 2)
    first, second = pool(_trained, folder, tmp_path / "model")
    assert second == {}
    assert first.keys() == plain.weights().keys()
    for name, value in plain.weights().items():
        torch.testing.assert_close(first[name], value, atol=1e-5, rtol=1e-5)
    assert load_file(tmp_path / "model" / "model.safetensors").keys() == first.keys()
    ids = torch.arange(20)[None]
    whole: Any = plain.scorer
    found = AutoModelForCausalLM.from_pretrained(str(tmp_path / "model"))(ids).logits
    torch.testing.assert_close(found[0], whole.whole_logits(ids[0]), atol=1e-4, rtol=1e-4)


class Poisoned:
    """An objective whose loss is not a number where it is asked to be so."""

    def __init__(self) -> None:
        self.factor = 1.0

    def __call__(self, policy: Policy, batch: Batch) -> LossOutput:
        return LossOutput(CausalLM()(policy, batch).total * self.factor)


def _poisoned(ranks: Ranks, folder: Path, changes: dict[str, Any]) -> tuple[list[bool], bool]:
    """Of three steps, the second with a NaN loss on the last rank alone: which were skipped, was nothing changed?"""
    job, objective = make_job(folder, {**PIPELINE, **changes}), Poisoned()
    engine: Any = built_on(job, ranks).engine
    loader, skipped, stayed = loader_of(job, ranks), [], True
    for step in range(3):
        before = {name: value.clone() for name, value in engine.stage.weights().items()}
        objective.factor = float("nan") if step == 1 and ranks.rank == ranks.world_size - 1 else 1.0
        skipped.append(engine.learn(objective, loader.micro_batches(step), 100, 0.01)[1].skipped)
        same = all(torch.equal(value, before[name]) for name, value in engine.stage.weights().items())
        stayed = stayed and same == (step == 1)
    engine.engine.destroy()
    return skipped, stayed


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gradient_that_is_not_finite_skips_the_step_on_all_stages(pool: Pool, folder: Path, precision: str) -> None:
    for skipped, stayed in pool(_poisoned, folder, {"strategy.precision": precision}):
        assert skipped == [False, True, False]
        assert stayed


def test_a_gradient_that_is_not_finite_in_one_pipeline_skips_the_step_in_all(pool4: Pool, folder: Path) -> None:
    for skipped, stayed in pool4(_poisoned, folder, {}):
        assert skipped == [False, True, False]
        assert stayed


def _held_out(ranks: Ranks, folder: Path) -> list[dict[str, dict[str, float]]]:
    """The scores of the whole data set; and again, behind a step without effect."""
    job = make_job(folder, PIPELINE)
    loader, layout = loader_of(job, ranks), build_layout(job)
    engine = built_on(job, ranks).engine
    rows = split(loader.corpus, eval_rows(loader.corpus, layout, 256), Share(micro=3), layout)
    found = [evaluate(engine, CausalLM(), {"train": rows})]
    engine.learn(CausalLM(), loader.micro_batches(0), 100, 0.0)
    found.append(evaluate(engine, CausalLM(), {"train": rows}))
    engine.engine.destroy()
    return found


def test_held_out_loss_is_that_of_one_process(pool: Pool, folder: Path) -> None:
    job = make_job(folder, {})
    corpus, layout = loader_of(job, Ranks()).corpus, build_layout(job)
    rows = split(corpus, eval_rows(corpus, layout, 256), Share(micro=1), layout)
    expected = evaluate(plain_engine(job), CausalLM(), {"train": rows})["train"]
    first, second = pool(_held_out, folder)
    assert first == second
    for found in first:
        assert found["train"]["tokens"] == expected["tokens"]
        assert found["train"]["loss"] == pytest.approx(expected["loss"], abs=1e-5)


def test_the_policy_of_a_scored_batch_gives_no_other_ones_scores() -> None:
    batch, other = (collate([]) for _ in range(2))
    policy = Scored(batch, torch.ones(1, 1))
    assert policy(batch).tolist() == [[1.0]]
    with pytest.raises(AssertionError, match="one batch at a time"):
        policy(other)
