"""Whether an engine computes what its model is: measured, so that a wrong one answers no row.

Shape letters: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.generating import Traced, family
from velocity.errors import UserError
from velocity.inference.cache import rolls
from velocity.inference.engine import Step
from velocity.inference.probe import PROMPTS, TOLERANCE, check_engine, engine_gap, plain_logps

LONGEST = 20


@cache
def llama(name: str = "Llama", attention: str = "sdpa") -> Any:
    model = family(name)
    model.set_attn_implementation(attention)
    return model


class Changed(Traced):
    """An engine that does something to what goes in, or to what comes out."""

    def __init__(
        self,
        model: Any,
        step: Callable[[Step], Step] = lambda step: step,
        logits: Callable[[Tensor], Tensor] = lambda logits_BV: logits_BV,
    ) -> None:
        super().__init__(model)
        self.step, self.logits = step, logits

    def forward(self, step: Step) -> Tensor:
        return self.logits(super().forward(self.step(step)))


def without_padding(step: Step) -> Step:
    """As where a fused attention ignores its mask: padding is read like any other token."""
    places = step.mask.shape[-1]
    seen = torch.ones(places, places, dtype=torch.bool).tril()[places - step.ids_BQ.shape[1] :]
    return replace(step, mask=seen[None, None] if step.mask.dim() == 4 else torch.ones_like(step.mask))


def without_positions(step: Step) -> Step:
    """As where an engine counts positions by itself, from the beginning of the padded row."""
    queries, places = step.ids_BQ.shape[1], step.mask.shape[-1]
    return replace(step, positions_BQ=torch.arange(places - queries, places).expand_as(step.ids_BQ))


def second_is(value: float) -> Callable[[Tensor], Tensor]:
    """The padded row has this value alone."""

    def changed(logits_BV: Tensor) -> Tensor:
        return torch.cat([logits_BV[:1], torch.full_like(logits_BV[1:], value)])

    return changed


@pytest.mark.parametrize("rolling", [True, False])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["Llama", "Qwen2", "GPT2", "Mistral"])
def test_plain_transformers_computes_what_its_model_is(name: str, attention: str, rolling: bool):
    model = llama(name, attention)
    assert engine_gap(Traced(model), plain_logps(model), rolls=rolling) < 1e-4
    check_engine(Traced(model), plain_logps(model), rolls=rolling)


def test_a_prompt_is_padded_and_a_token_is_read_behind_the_cache():
    engine = Traced(llama())
    engine_gap(engine, plain_logps(llama()), rolls=True)
    longest, shortest = max(PROMPTS), min(PROMPTS)
    assert longest > shortest > 1
    assert engine.forwards == [(2, longest - 1, longest - 1), (2, 1, longest)]


@pytest.mark.parametrize("rolling", [True, False])
@pytest.mark.parametrize("step", [without_padding, without_positions])
def test_an_engine_that_ignores_padding_or_positions_is_refused(step: Callable[[Step], Step], rolling: bool):
    model = llama("GPT2")  # its positions are absolute: a shift shows
    with pytest.raises(UserError, match="Changed does not compute what GPT2LMHeadModel is") as caught:
        check_engine(Changed(model, step), plain_logps(model), rolls=rolling)
    assert caught.value.problems[0].where == "generation.engine"
    assert "generation.engine" in caught.value.problems[0].fix


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 0.0])
def test_an_engine_whose_padded_row_is_garbled_is_refused(value: float):
    model = llama()
    with pytest.raises(UserError, match="does not compute what LlamaForCausalLM is"):
        check_engine(Changed(model, logits=second_is(value)), plain_logps(model), rolls=True)


def test_an_engine_with_other_weights_is_refused():
    with pytest.raises(UserError, match="off by"):
        check_engine(Traced(family("Llama", tie_word_embeddings=True)), plain_logps(llama()), rolls=True)


@pytest.mark.parametrize(("error", "refused"), [(0.8 * TOLERANCE, False), (1.5 * TOLERANCE, True)])
def test_what_rounding_does_in_16_bit_passes_and_more_does_not(error: float, refused: bool):
    def changed(logits_BV: Tensor) -> Tensor:
        moved_BV = logits_BV.log_softmax(dim=-1)
        moved_BV[0, 7] += error  # one log-probability of 97, which hardly moves the sum
        return moved_BV

    engine = Changed(llama(), logits=changed)
    if refused:
        with pytest.raises(UserError):
            check_engine(engine, plain_logps(llama()), rolls=True)
    else:
        check_engine(engine, plain_logps(llama()), rolls=True)


def test_16_bit_passes_against_its_own_weights():
    half = family("Qwen2").to(torch.bfloat16)
    expected = plain_logps(half)
    assert all(logps_V.dtype == torch.float32 for logps_V in expected)
    check_engine(Traced(half), expected, rolls=True)


def test_a_model_with_windows_is_measured_with_its_own_cache():
    model = family("Mistral", sliding_window=4)
    assert not rolls(model.config, LONGEST)
    assert engine_gap(Traced(model), plain_logps(model), rolls=False) < 1e-4
    assert engine_gap(Traced(model), plain_logps(model), rolls=True) > TOLERANCE, "without windows it is another model"
