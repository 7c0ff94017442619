"""Where weights and state lie, without ranks: what ZeRO does with them is in tests/invariance/test_elastic.py."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from velocity.distributed.flats import Flat, Span, named, quantised, take, values_of, whole_flats


class Two(nn.Module):
    """A matrix and a vector, and something frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ParameterDict({"matrix": torch.ones(3, 4), "vector": torch.ones(5)})
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)


def stepped(model: Two, optimizer: torch.optim.Optimizer) -> None:
    for number, parameter in enumerate(model.model.values()):
        parameter.grad = torch.full_like(parameter, float(number + 1))
    optimizer.step()


def kinds(flat: Flat) -> dict[str, list[float]]:
    return {kind: values.tolist() for kind, values, _ in values_of(flat)}


OPTIMIZERS: dict[str, Any] = {
    "adamw": lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.1, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, 0.1),
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    "adafactor": lambda p: torch.optim.Adafactor(p, 0.1, weight_decay=0.1),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_state_that_is_started_moves_no_weight_and_no_rate(kind: str) -> None:
    model = Two()
    optimizer = OPTIMIZERS[kind](model.model.parameters())
    (flats,) = whole_flats(optimizer, named(model), None, start=True)
    assert all(bool((flat.tensor == 1).all()) for flat in flats)
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert all(parameter.grad is None for parameter in model.model.values())


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_what_is_taken_goes_on_like_what_was_given(kind: str) -> None:
    straight, other = Two(), Two()
    one, two = (OPTIMIZERS[kind](model.model.parameters()) for model in (straight, other))
    for _ in range(3):
        stepped(straight, one)
    stepped(other, two)  # somewhere else
    (given,), (taking,) = (
        whole_flats(one, named(straight), None, start=False),
        whole_flats(two, named(other), None, start=True),
    )
    held = {(span.name, kind): values for flat in given for kind, values, spans in values_of(flat) for span in spans}

    def read(kind: str, span: Span) -> Tensor:
        return held[span.name, kind]

    for flat in taking:
        take(flat, read)
    for model, optimizer in ((straight, one), (other, two)):
        stepped(model, optimizer)
    for name, parameter in straight.model.items():
        assert torch.equal(parameter, other.model[name])


def test_names_are_the_models_and_the_frozen_have_none() -> None:
    model = Two()
    assert sorted(named(model).values()) == ["matrix", "vector"]
    (flats,) = whole_flats(OPTIMIZERS["sgd"](model.model.parameters()), named(model), None, start=False)
    assert [span.name for flat in flats for span in flat.spans] == ["matrix", "vector"]


def test_a_tensor_with_stretches_of_two_parameters_counts_steps_for_the_one_that_begins_there() -> None:
    spans = [Span("a", (10,), None, 6, 0, 4), Span("b", (3,), None, 0, 4, 3)]
    flat = Flat(torch.zeros(8), {"step": 5, "moment": torch.arange(8.0)}, spans)
    found = {kind: [(span.name, span.at, span.count) for span in spans] for kind, _, spans in values_of(flat)}
    assert found == {
        "weight": [("a", 0, 4), ("b", 4, 3)],
        "step": [("b", 0, 1)],
        "moment": [("a", 0, 4), ("b", 4, 3)],
    }


@pytest.mark.parametrize("signed", [True, False])
def test_what_8_bits_stand_for_is_quantised_to_the_same_8_bits(signed: bool) -> None:
    functional = import_module("bitsandbytes.functional")
    code = functional.create_dynamic_map(signed=signed)
    torch.manual_seed(0)
    values = torch.randn(256 * 500 + 17) * torch.logspace(-12, 3, 256 * 500 + 17)
    values = values if signed else values.abs()
    values[:256] = 0.0
    numbers, state = functional.quantize_blockwise(values, code=code, blocksize=256)
    decoded = functional.dequantize_blockwise(numbers, absmax=state.absmax, code=code, blocksize=256)
    again, scales = quantised(decoded, code)
    assert torch.equal(functional.dequantize_blockwise(again, absmax=scales, code=code, blocksize=256), decoded)
    torch.testing.assert_close(scales, state.absmax, rtol=2e-7, atol=0)
