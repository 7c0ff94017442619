"""Choices against transformers' own processors, and the ends of the unit interval.

Probabilities are compared exactly: N evenly spaced random numbers choose a token N times its probability, give or take
one. Shape letters: B rows, V vocabulary, N random numbers.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.generating import family
from velocity.config.inference import GenerationConfig
from velocity.inference.request import uniform
from velocity.inference.sampling import Sampler, finite, logps_of

SEEN = [3, 5, 5, 11]
NUMBERS = 20_000
WAYS: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.7},
    "top_k": {"temperature": 1.0, "top_k": 5},
    "top_p": {"temperature": 1.3, "top_p": 0.8},
    "min_p": {"temperature": 1.0, "min_p": 0.1},
    "penalty": {"temperature": 1.0, "repetition_penalty": 1.7},
    "reward": {"temperature": 1.0, "repetition_penalty": 0.6},
    "all": {"temperature": 1.5, "top_k": 30, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2},
}


def logits_of(rows: int, vocabulary: int = 97, seed: int = 0) -> Tensor:
    return 3 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


def seen_in(vocabulary: int, ids: list[int] = SEEN) -> Tensor:
    return torch.zeros(1, vocabulary, dtype=torch.bool).index_fill_(1, torch.tensor(ids), value=True)


def by_transformers(logits_BV: Tensor, ways: dict[str, Any]) -> Tensor:
    """The distribution from which transformers' generate would draw behind the tokens SEEN."""
    from transformers import GenerationConfig as HFGenerationConfig

    model = family("Llama", num_hidden_layers=1)
    asked = HFGenerationConfig(do_sample=True, **{"top_k": 0, **ways})  # left out, it is 50 there
    settings, _ = model._prepare_generation_config(asked)
    processors = model._get_logits_processor(settings, input_ids_seq_length=len(SEEN), device="cpu")
    found: Tensor = processors(torch.tensor([SEEN]), logits_BV).softmax(dim=-1)
    return found


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("seed", [0, 1])
def test_tokens_are_drawn_from_the_distribution_of_transformers(name: str, seed: int):
    ways, logits_BV = WAYS[name], logits_of(1, seed=seed)
    expected_V = by_transformers(logits_BV, ways)[0]
    numbers_N = (torch.arange(NUMBERS, dtype=torch.float64) + 0.5) / NUMBERS
    sampler = Sampler(GenerationConfig(**ways))
    seen = seen_in(97).expand(NUMBERS, -1) if sampler.remembers else None
    tokens_N = sampler.choose(logits_BV.expand(NUMBERS, -1), seen, numbers_N)
    counts_V = torch.bincount(tokens_N, minlength=97)
    assert float((counts_V - expected_V * NUMBERS).abs().max()) <= 1.01
    assert int(counts_V[expected_V == 0].sum()) == 0


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_at_temperature_0_the_likeliest_token_behind_the_penalty_is_chosen(penalty: float):
    from transformers import RepetitionPenaltyLogitsProcessor

    logits_BV = logits_of(50)
    sampler = Sampler(GenerationConfig(repetition_penalty=penalty))
    seen_BV = seen_in(97).expand(50, -1) if sampler.remembers else None
    history = torch.tensor([SEEN]).expand(50, -1)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(history, logits_BV.clone()).argmax(dim=-1)
    assert torch.equal(sampler.choose(logits_BV, seen_BV, torch.zeros(50, dtype=torch.float64)), expected)


def test_the_penalty_changes_greedy_choices_and_is_asked_for_only_where_there_is_one():
    logits_BV = torch.tensor([[2.0, 1.9, -5.0]])  # 2.0 / 1.5 = 1.33 < 1.9
    seen_BV = torch.tensor([[True, False, False]])
    zero = torch.zeros(1, dtype=torch.float64)
    assert Sampler(GenerationConfig(repetition_penalty=1.5)).choose(logits_BV, seen_BV, zero).tolist() == [1]
    assert Sampler(GenerationConfig()).choose(logits_BV, None, zero).tolist() == [0]
    assert Sampler(GenerationConfig(repetition_penalty=1.5)).remembers
    assert not Sampler(GenerationConfig()).remembers


@pytest.mark.parametrize("number", [0.0, 2.0**-53, 0.5, 1 - 2.0**-53])
def test_no_random_number_chooses_a_token_of_probability_0(number: float):
    dead = -torch.inf
    logits_BV = torch.tensor([
        [dead, 1.0, dead, 1.0, dead],
        [dead, dead, dead, dead, 0.0],
        [0.0, dead, dead, dead, dead],
        [-200.0, 0.0, -200.0, 0.0, -200.0],  # exp(-200) is 0 in fp32
    ])  # fmt: skip
    numbers_B = torch.full((4,), number, dtype=torch.float64)
    tokens = Sampler(GenerationConfig(temperature=1.0)).choose(logits_BV, None, numbers_B).tolist()
    assert tokens == [1 if number < 0.5 else 3, 4, 0, 1 if number < 0.5 else 3]


@pytest.mark.parametrize("name", ["top_k", "top_p", "min_p", "all"])
def test_the_ends_of_the_unit_interval_choose_none_that_was_filtered(name: str):
    ways, logits_BV = WAYS[name], logits_of(64)
    allowed_BV = torch.cat([by_transformers(logits_BV[row, None], ways) for row in range(64)]) > 0
    sampler = Sampler(GenerationConfig(**ways))
    seen_BV = seen_in(97).expand(64, -1) if sampler.remembers else None
    for number in (0.0, 1 - 2.0**-53):
        tokens_B = sampler.choose(logits_BV, seen_BV, torch.full((64,), number, dtype=torch.float64))
        assert bool(allowed_BV.gather(1, tokens_B[:, None]).all())


def test_the_numbers_of_a_run_give_the_frequencies_of_the_model():
    logits_BV = logits_of(1, vocabulary=12) / 3
    numbers_N = torch.tensor([uniform(seed, step) for seed in range(100) for step in range(100)], dtype=torch.float64)
    tokens_N = Sampler(GenerationConfig(temperature=1.0)).choose(logits_BV.expand(10_000, -1), None, numbers_N)
    expected_V = 10_000 * logits_BV[0].softmax(dim=-1)
    assert float(expected_V.min()) > 50, "enough of each for the statistic"
    statistic = ((torch.bincount(tokens_N, minlength=12) - expected_V) ** 2 / expected_V).sum()
    assert float(statistic) < 31.3  # chi-square with 11 degrees of freedom: 999 of 1,000 cases


def test_a_rows_choice_does_not_depend_on_the_rows_beside_it():
    sampler, logits_BV = Sampler(GenerationConfig(**WAYS["all"])), logits_of(40)
    seen_BV = torch.rand(40, 97, generator=torch.Generator().manual_seed(1)) < 0.2
    numbers_B = torch.tensor([uniform(row, 0) for row in range(40)], dtype=torch.float64)
    together = sampler.choose(logits_BV, seen_BV, numbers_B).tolist()
    alone = [sampler.choose(logits_BV[row, None], seen_BV[row, None], numbers_B[row, None]).item() for row in range(40)]
    assert together == alone
    assert len(set(together)) > 10, "and they are not all alike"


def test_choosing_leaves_the_logits_as_they_were():
    logits_BV = logits_of(3)
    before = logits_BV.clone()
    Sampler(GenerationConfig(**WAYS["all"])).choose(logits_BV, seen_in(97).expand(3, -1), torch.zeros(3).double())
    assert torch.equal(logits_BV, before)


def test_logps_are_those_of_the_model_itself():
    logits_BV, tokens_B = logits_of(5), torch.tensor([0, 96, 3, 50, 7])
    expected = logits_BV.double().log_softmax(dim=-1).gather(1, tokens_B[:, None])[:, 0]
    torch.testing.assert_close(logps_of(logits_BV, tokens_B).double(), expected, rtol=0, atol=1e-5)


def test_a_row_without_a_likeliest_token_is_told_from_one_with_forbidden_tokens():
    nan, inf = torch.nan, torch.inf
    logits_BV = torch.tensor([[0.0, nan, 1.0], [0.0, inf, 1.0], [-inf, -inf, -inf], [-inf, 0.0, -inf], [0.0, 1.0, 2.0]])
    assert finite(logits_BV).tolist() == [False, False, False, True, True]
