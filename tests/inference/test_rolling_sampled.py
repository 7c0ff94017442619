"""Sampled completions: a row's depend on its seed, content and sample, whatever batch, order or neighbours it has."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest
import torch

from tests.generating import Answers, Traced, answered, family, prompts_of, requests_of
from velocity.inference.request import Request

WAYS: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 1.0},
    "nucleus": {"temperature": 0.8, "top_p": 0.9, "top_k": 40},
    "min_p and penalty": {"temperature": 1.5, "min_p": 0.05, "repetition_penalty": 1.3},
}
PROMPTS = prompts_of([20 - i for i in range(9)])
NEW = 12


@cache
def llama() -> Any:
    return family("Llama")


def sampled(requests: list[Request], way: str, rows: int, **settings: Any) -> dict[tuple[str, int], list[int]]:
    """Completions by prompt and sample: the row's number is where it stands, which must not matter."""
    answers: Answers = answered(Traced(llama()), requests, rows=rows, max_new_tokens=NEW, **WAYS[way], **settings)
    named = {(request.row, request.sample): str(request.ids) for request in requests}
    return {(named[key], key[1]): done.ids for key, done in answers.items()}


@cache
def together(way: str) -> dict[tuple[str, int], list[int]]:
    return sampled(requests_of(PROMPTS, samples=3), way, rows=27)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rows", [1, 4])
def test_a_completion_is_the_same_in_a_batch_of_any_size(way: str, rows: int):
    assert sampled(requests_of(PROMPTS, samples=3), way, rows=rows) == together(way)


@pytest.mark.parametrize("way", WAYS)
def test_a_completion_is_the_same_in_another_order_and_under_another_number(way: str):
    prompts = list(PROMPTS)
    random.Random(3).shuffle(prompts)
    assert sampled(requests_of(prompts, samples=3)[::-1], way, rows=5) == together(way)


@pytest.mark.parametrize("way", WAYS)
def test_a_completion_is_the_same_beside_other_neighbours(way: str):
    others = prompts_of([30, 11, 25, 4], seed=9)
    found = sampled(requests_of([*others, *PROMPTS[3:6]], samples=3), way, rows=6)
    assert {key: ids for key, ids in found.items() if key in together(way)} == {
        key: ids for key, ids in together(way).items() if key in found
    }
    assert len(found) == 7 * 3


def test_a_completion_is_the_same_where_the_beginning_of_all_prompts_is_computed_apart():
    head = prompts_of([6], seed=5)[0]
    requests = requests_of([[*head, *ids] for ids in PROMPTS], samples=2)
    assert sampled(requests, "nucleus", rows=5, shared=head) == sampled(requests, "nucleus", rows=5)


def test_samples_of_a_row_differ_and_another_seed_gives_others():
    found = together("temperature")
    assert len({tuple(ids) for ids in found.values()}) == 27
    other = sampled(requests_of(PROMPTS, samples=3, seed=1), "temperature", rows=27)
    assert found.keys() == other.keys()
    assert all(found[key] != other[key] for key in found)


def test_first_tokens_of_many_samples_have_the_models_frequencies():
    count, prompt = 3000, PROMPTS[0]
    answers = answered(
        Traced(llama()), requests_of([prompt], samples=count), rows=count, max_new_tokens=1, temperature=1.0
    )
    with torch.no_grad():
        expected_V = count * llama()(input_ids=torch.tensor([prompt])).logits[0, -1].softmax(dim=-1)
    counts_V = torch.bincount(torch.tensor([done.ids[0] for done in answers.values()]), minlength=97)
    often = expected_V > 10
    kept = int(often.sum())
    assert kept > 15
    statistic = float((((counts_V - expected_V) ** 2 / expected_V)[often]).sum())
    # chi-square of so many cells: mean `kept`, standard deviation sqrt(2 kept)
    assert statistic < kept + 4 * (2 * kept) ** 0.5


def test_a_temperature_near_0_is_greedy():
    greedy = answered(Traced(llama()), requests_of(PROMPTS), max_new_tokens=NEW)
    cold = answered(Traced(llama()), requests_of(PROMPTS), max_new_tokens=NEW, temperature=1e-4)
    assert {key: done.ids for key, done in cold.items()} == {key: done.ids for key, done in greedy.items()}
