"""DeepSpeed Inference over two ranks: what it refuses, what each rank holds, and what the group agrees on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.generating import family, family_folder, planned, write_generate_job
from tests.pool import Pool
from velocity.distributed.comm import Ranks
from velocity.errors import UserError
from velocity.inference.deepspeed_engine import DeepSpeedInferenceEngine, check_splits


def config(tensor: int, dtype: str = "fp32") -> dict[str, Any]:
    return {"tensor_parallel": {"tp_size": tensor}, "dtype": dtype, "replace_with_kernel_inject": False}


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Mistral", "GPTNeoX", "Gemma2"])
def test_an_architecture_that_was_measured_is_split(kind: str):
    check_splits(getattr(transformers, f"{kind}Config")())


@pytest.mark.parametrize("kind", ["Phi3", "Olmo2", "GPT2", "Mamba"])
def test_an_architecture_that_comes_out_wrong_or_was_never_measured_is_refused_by_name(kind: str):
    config_of: Any = getattr(transformers, f"{kind}Config")()
    with pytest.raises(UserError, match=f"does not split {config_of.model_type} right") as caught:
        check_splits(config_of)
    assert caught.value.problems[0].where == "generation.engine"
    assert "transformers, or zero" in caught.value.problems[0].fix


def test_a_setting_that_garbles_an_architecture_is_refused_with_it():
    check_splits(transformers.StableLmConfig(qk_layernorm=False))
    with pytest.raises(UserError, match="stablelm with qk_layernorm"):
        check_splits(transformers.StableLmConfig(qk_layernorm=True))


def test_the_text_part_of_a_larger_model_decides():
    check_splits(transformers.Gemma3Config())  # its text part is gemma3_text


def held(ranks: Ranks, tensor: int, dtype: str, architecture: str) -> dict[str, Any]:
    """What a rank holds and says, behind an engine over groups of `tensor` ranks."""
    model = family(architecture)
    whole = sum(parameter.numel() for layer in model.model.layers for parameter in layer.parameters())
    frequencies = model.model.rotary_emb.inv_freq.clone()
    engine = DeepSpeedInferenceEngine(model, config(tensor, dtype), ranks)
    told = torch.tensor([10 * ranks.rank, 7])
    return {
        "share": sum(p.numel() for layer in engine.model.model.layers for p in layer.parameters()) / whole,
        "dtype": str(next(engine.model.parameters()).dtype),
        "exact": torch.equal(engine.model.model.rotary_emb.inv_freq, frequencies),
        "leads": engine.leads,
        "any": engine.any(ranks.first, False, True),
        "same": engine.same(told).tolist(),
        "agree": engine.agree({"shard": ranks.rank}),
    }


@pytest.mark.parametrize(("architecture", "dtype"), [("Llama", "fp32"), ("Qwen2", "bf16")])
def test_two_ranks_hold_half_of_each_layer_and_agree_with_the_first_of_them(pool: Pool, architecture: str, dtype: str):
    first, second = pool(held, 2, dtype, architecture)
    for found in (first, second):
        assert found["share"] == pytest.approx(0.5, abs=0.01), "all but the norms"
        assert found["dtype"] == {"fp32": "torch.float32", "bf16": "torch.bfloat16"}[dtype]
        assert found["exact"], "rotary frequencies are not rounded to 16 bit"
        assert found["any"] == (True, False, True), "what one of them says"
        assert (found["same"], found["agree"]) == ([0, 7], {"shard": 0})
    assert (first["leads"], second["leads"]) == (True, False)


def test_groups_of_one_rank_are_by_themselves(pool: Pool):
    for rank, found in enumerate(pool(held, 1, "fp32", "Llama")):
        assert found["share"] == 1
        assert found["leads"]
        assert found["any"] == (rank == 0, False, True)
        assert (found["same"], found["agree"]) == ([10 * rank, 7], {"shard": rank})


def test_a_model_that_is_not_split_is_refused_before_deepspeed_sees_it():
    with pytest.raises(UserError, match="does not split gpt2"):
        DeepSpeedInferenceEngine(family("GPT2"), config(2), Ranks(0, 0, 2))


def test_a_plan_puts_the_group_into_what_deepspeed_is_told(tmp_path: Path):
    from velocity.distributed.ds_config import inference_config

    family_folder(tmp_path / "model", "Llama")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Why?"}\n')
    job = write_generate_job(tmp_path / "job.yaml", {"generation.engine": "deepspeed", "strategy.precision": "bf16"})
    assert inference_config(planned(job, "launch.processes=2").job, 2) == config(2, "bf16")
