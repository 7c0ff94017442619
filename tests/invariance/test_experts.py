"""Guarantee 1 for a mixture of experts: under ZeRO 3, where ranks visit different experts, steps are one process's.

transformers keeps a layer's experts as one tensor, which is gathered whole anyhow. Where each expert is a module of its
own, as in models that bring their own code, ranks would gather the weights of different experts at the same time.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.qwen3_moe import modeling_qwen3_moe as qwen
from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig

from tests.invariance.test_tensor import SGD, prepare
from tests.pool import Pool
from tests.running import Steps, assert_same, built_on, make_job, steps_on
from velocity.distributed.comm import Ranks

EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
# Some rows have an answer of one word: its tokens do not meet all experts.
ZERO_3 = {"optimizer": SGD, "strategy.zero": 3, "data.packing": False, "batch.micro": 1}


class ApartConfig(Qwen3MoeConfig):
    model_type = "experts_apart"


class Block(nn.Module):
    """Qwen3-MoE's, with a module an expert; those that no token is sent to are not visited."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.moe_intermediate_size
        self.gate = qwen.Qwen3MoeTopKRouter(config)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, inner, bias=False), nn.SiLU(), nn.Linear(inner, width, bias=False))
            for _ in range(config.num_experts)
        )

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        hidden_TD = hidden_BTD.flatten(0, 1)
        _, weights_TK, chosen_TK = self.gate(hidden_TD)
        result_TD = torch.zeros_like(hidden_TD)
        for number in chosen_TK.unique().tolist():
            token, place = torch.where(chosen_TK == number)
            output_ND = self.experts[number](hidden_TD[token]) * weights_TK[token, place, None]
            result_TD = result_TD.index_add(0, token, output_ND)
        return result_TD.reshape(hidden_BTD.shape)


class Apart(qwen.Qwen3MoeForCausalLM):
    config_class = ApartConfig

    def __init__(self, config: ApartConfig) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = Block(config)
        self.post_init()


AutoConfig.register("experts_apart", ApartConfig, exist_ok=True)  # on each rank, which imports this file
AutoModelForCausalLM.register(ApartConfig, Apart, exist_ok=True)


@pytest.fixture(name="folder", scope="module", params=["qwen3_moe", "experts_apart"])
def _folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("experts"), request.param, **EXPERTS)


@pytest.fixture(name="expected", scope="module")
def _expected(folder: Path) -> Steps:
    return steps_on(Ranks(), folder, {**ZERO_3, "strategy.zero": 0})


def test_the_reference_is_clipped_and_learns(expected: Steps) -> None:
    assert min(norm for _, norm in expected) > 0.5
    assert expected[-1][0] < expected[0][0] - 0.05


@pytest.mark.parametrize("changes", [{}, {"strategy.recompute": "layers"}], ids=["kept", "recomputed"])
def test_experts_that_are_split_over_two_ranks_give_the_same_as_one_process(
    pool: Pool, folder: Path, expected: Steps, changes: Mapping[str, Any]
) -> None:
    first, second = pool(steps_on, folder, {**ZERO_3, **changes})
    assert first == second
    assert_same(first, expected)


def test_so_do_packed_rows_of_several_sequences(pool: Pool, folder: Path) -> None:
    found = pool(steps_on, folder, {"optimizer": SGD, "strategy.zero": 3})[0]
    assert_same(found, steps_on(Ranks(), folder, {"optimizer": SGD}))


def _leaves(ranks: Ranks, folder: Path) -> list[str]:
    """The modules that DeepSpeed gathers whole."""
    built = built_on(make_job(folder, ZERO_3), ranks)
    found = [name for name, module in built.scorer.model.named_modules() if getattr(module, "_z3_leaf", False)]
    built.engine.engine.destroy()
    return found


def test_the_blocks_of_experts_are_gathered_whole(pool: Pool, folder: Path) -> None:
    assert pool(_leaves, folder) == [["model.layers.0.mlp", "model.layers.1.mlp"]] * 2
