"""Matrices that ranks share come back whole, from any ZeRO stage; the engine resumes bit for bit and skips on all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.distributed.test_deepspeed_engine import _poisoned, _resume
from tests.pool import Pool
from tests.running import built_on, make_job, plain_engine, prepare_folder, take_steps
from velocity.config.combinations import Facts, limits
from velocity.distributed import tensor
from velocity.distributed.comm import Ranks
from velocity.distributed.ds_config import deepspeed_config
from velocity.errors import UserError
from velocity.models.export import save_model
from velocity.models.probe import TOLERANCE, own_scores, scoring_gap, split_gap
from velocity.models.scorer import CausalScorer
from velocity.training.build import probe


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_folder(tmp_path_factory.mktemp("tensor"), tied=request.param)


def changes_of(zero: int, **more: Any) -> dict[str, Any]:
    return {"strategy.tensor": 2, "strategy.zero": zero, **more}


def _weights(ranks: Ranks, folder: Path, zero: int) -> tuple[dict[str, torch.Tensor], int, list[tuple[float, float]]]:
    """Whole weights after two steps, the numbers that this rank's module held before ZeRO, and two steps more."""
    job = make_job(folder, changes_of(zero))
    built = built_on(job, ranks)
    held = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in built.scorer.parameters())
    take_steps(job, built.engine, ranks, 2)
    weights = dict(built.engine.weights())
    after = take_steps(job, built.engine, ranks, 2)  # the engine goes on with the parts it had
    built.engine.engine.destroy()
    return weights, held, after


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_whole_weights_come_back_on_the_first_rank_and_training_goes_on(
    pool: Pool, pool4: Pool, folder: Path, zero: int
) -> None:
    job = make_job(folder, {})
    plain = plain_engine(job)
    in_all = sum(parameter.numel() for parameter in plain.scorer.parameters())
    take_steps(job, plain, Ranks(), 2)
    expected = plain.weights()
    then = take_steps(job, plain, Ranks(), 2)
    for ranks in (pool, pool4):
        (first, held, after), *others = ranks(_weights, folder, zero)
        assert all(other[0] == {} for other in others)
        assert first.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(first[name], value, atol=1e-5, rtol=1e-5)
        assert held < 0.8 * in_all
        assert after == [pytest.approx(one, rel=1e-5) for one in then]


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_a_loaded_checkpoint_gives_the_same_bits(
    pool: Pool, pool4: Pool, folder: Path, tmp_path: Path, zero: int
) -> None:
    for number, ranks in enumerate((pool, pool4)):
        straight, resumed = ranks(_resume, folder, tmp_path / str(number), changes_of(zero))[0]
        assert resumed == straight


def test_a_loaded_checkpoint_gives_the_same_bits_in_16_bit(pool: Pool, folder: Path, tmp_path: Path) -> None:
    straight, resumed = pool(_resume, folder, tmp_path, changes_of(1, **{"strategy.precision": "bf16"}))[0]
    assert resumed == straight


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("zero", [1, 2, 3])
def test_a_gradient_that_is_not_finite_in_one_group_skips_the_step_on_all(
    pool4: Pool, folder: Path, zero: int, precision: str
) -> None:
    for skipped, stayed in pool4(_poisoned, folder, changes_of(zero, **{"strategy.precision": precision})):
        assert skipped == [False, True, False]
        assert stayed


def _exported(ranks: Ranks, folder: Path, target: Path) -> torch.Tensor:
    """The probe's scores by a trained engine that left its model in `target`."""
    job = make_job(folder, changes_of(1))
    built = built_on(job, ranks)
    probe(built, job)
    take_steps(job, built.engine, ranks, 3)
    weights = built.engine.weights()
    if ranks.first:
        from velocity.data.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(folder / "model", None)
        save_model(built.scorer.model, weights, tokenizer, target, "card", turn_ends=[])
    built.engine.train(False)
    scores_S = own_scores(built.scorer)
    built.engine.engine.destroy()
    return scores_S


def test_an_exported_model_gives_the_engines_logits_in_plain_transformers(
    pool: Pool, folder: Path, tmp_path: Path
) -> None:
    scores_S = pool(_exported, folder, tmp_path / "model")[0]
    model = AutoModelForCausalLM.from_pretrained(str(tmp_path / "model"), dtype=torch.float32).eval()
    untrained = AutoModelForCausalLM.from_pretrained(str(folder / "model"), dtype=torch.float32).eval()
    expected_S, before_S = (own_scores(CausalScorer(one, 64)) for one in (model, untrained))  # plain attention
    torch.testing.assert_close(scores_S, expected_S, atol=1e-5, rtol=1e-5)
    assert (scores_S - before_S).abs().max() > 0.01


def _split_wrong(ranks: Ranks, folder: Path) -> tuple[float, float, str]:
    """How far a model of which keys and values alone are split is off the whole one and its own logits; the refusal."""
    from transformers import LlamaConfig

    right = LlamaConfig.base_model_tp_plan
    LlamaConfig.base_model_tp_plan = {f"layers.*.self_attn.{name}_proj": "colwise" for name in "kv"}
    try:
        job = make_job(folder, changes_of(1))
        built = built_on(job, ranks)
        assert built.unsplit_S is not None
        built.engine.train(False)
        gap = split_gap(built.engine, built.scorer.vocabulary, built.unsplit_S)
        own_gap = scoring_gap(built.engine, built.scorer)
        with pytest.raises(UserError) as refused:
            probe(built, job)
        built.engine.engine.destroy()
    finally:
        LlamaConfig.base_model_tp_plan = right
    return gap, own_gap, str(refused.value)


def test_the_probe_compares_with_the_model_from_before_it_was_split(pool: Pool, folder: Path) -> None:
    for gap, own_gap, said in pool(_split_wrong, folder):
        assert gap > TOLERANCE
        assert own_gap < 1e-4  # the split model's own logits are as wrong
        assert "strategy.tensor" in said and "strategy.zero: 3" in said


@pytest.mark.parametrize("architecture", ["phi3", "apertus", "gpt2"])
def test_an_architecture_that_was_not_compared_is_refused_by_name(architecture: str) -> None:
    model = SimpleNamespace(config=AutoConfig.for_model(architecture))
    with pytest.raises(UserError, match=rf"(?s){architecture} .*strategy.zero: 3, or take one of llama"):
        tensor.split_plan(model)  # type: ignore[arg-type]


def test_a_plan_refuses_it_before_anything_is_loaded(folder: Path) -> None:
    job = make_job(folder, changes_of(1))
    assert [said for _, said in limits(job, Facts(processes=2, key_heads=2, architecture="llama"))] == []
    (said,) = [said for _, said in limits(job, Facts(processes=2, key_heads=2, architecture="phi3"))]
    assert "strategy.tensor=2" in said and "not phi3" in said and "strategy.zero: 3" in said
    (said,) = [said for _, said in limits(job, Facts(processes=2, key_heads=1, architecture="llama"))]
    assert "the model has 1" in said


def test_the_configuration_counts_those_that_share_a_model_once(folder: Path) -> None:
    config: Mapping[str, Any] = deepspeed_config(make_job(folder, changes_of(1)), 8)
    assert config["train_batch_size"] == 4 * config["train_micro_batch_size_per_gpu"]
    assert config["tensor_parallel"] == {"autotp_size": 2, "vocab_parallel_lm_head": False}
    assert "tensor_parallel" not in deepspeed_config(make_job(folder, {"strategy.zero": 1}), 8)
