"""A model's repeated layers are found by structure, and what is done to them changes no gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.making import tiny_config, tiny_model
from velocity.models.layers import gather_experts_whole, layers_of, recompute_layers


def gradients(model: Any) -> list[torch.Tensor]:
    model.train()
    ids = torch.arange(12)[None]
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return [parameter.grad for parameter in model.parameters()]


def test_a_transformers_layers_are_its_longest_list():
    model = tiny_model(tiny_config(50, num_hidden_layers=3))
    assert layers_of(model) == list(model.model.layers)
    assert layers_of(nn.Linear(2, 2)) == []


@pytest.mark.parametrize("on_cpu", [False, True])
def test_recomputed_layers_have_the_same_gradients_wherever_their_inputs_wait(
    on_cpu: bool, monkeypatch: pytest.MonkeyPatch
):
    entered: list[bool] = []
    real = torch.autograd.graph.save_on_cpu

    def counted(pin_memory: bool) -> Any:
        entered.append(pin_memory)
        return real(pin_memory=pin_memory)

    monkeypatch.setattr(torch.autograd.graph, "save_on_cpu", counted)
    expected = gradients(tiny_model(tiny_config(50)))
    model = tiny_model(tiny_config(50))
    recompute_layers(model, on_cpu=on_cpu)
    for one, other in zip(gradients(model), expected, strict=True):
        assert torch.equal(one, other)
    assert len(entered) == (2 if on_cpu else 0), "one a layer"


def test_a_block_that_holds_experts_is_gathered_whole_and_no_other_module_is():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])

    model = nn.Sequential(nn.Linear(2, 2), Block())
    gather_experts_whole(model)
    assert [getattr(module, "_z3_leaf", False) for module in model] == [False, True]
    gather_experts_whole(nn.Linear(2, 2))
