"""Beam search of whole batches against transformers' own of one prompt at a time.

Shape letters: S tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import pytest
import torch

from tests.generating import Asked, Traced, Watching, family, greedy, prompts_of, requests_of
from velocity.config.inference import GenerationConfig
from velocity.inference.beams import BeamSearch
from velocity.inference.request import Completion, Request
from velocity.inference.rolling import Limits

NEW = 8
PROMPTS = prompts_of([19, 17, 12, 9, 8, 5, 3])


@cache
def llama(name: str = "Llama") -> Any:
    return family(name)


@torch.no_grad()
def alone(
    ids: Sequence[int], beams: int, count: int, ends: Iterable[int] = (), name: str = "Llama", penalty: float = 1.0
) -> list[list[int]]:
    """The best `count` beams of one prompt, each up to its end token."""
    found = llama(name).generate(
        torch.tensor([list(ids)]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), num_beams=beams,
        num_return_sequences=count, do_sample=False, max_new_tokens=NEW, eos_token_id=sorted(ends) or None,
        pad_token_id=0, repetition_penalty=penalty,
    )  # fmt: skip
    rows = [row[len(ids) :] for row in found.tolist()]
    return [row[: next((i + 1 for i, token in enumerate(row) if token in set(ends)), len(row))] for row in rows]


def search(
    requests: Sequence[Request], limits: Limits, ends: Iterable[int] = (), name: str = "Llama", **generation: Any
) -> list[tuple[Request, Completion]]:
    config = GenerationConfig(max_new_tokens=NEW, **generation)
    beams = BeamSearch(Traced(llama(name)), config, limits, frozenset(ends))
    return list(beams.run(Asked(requests), Watching()))


@pytest.mark.parametrize("beams", [2, 4])
@pytest.mark.parametrize("rows", [1, 8, 100])
@pytest.mark.parametrize("name", ["Llama", "Qwen2", "GPT2"])
def test_the_best_beam_of_each_prompt_is_that_of_the_prompt_alone(name: str, rows: int, beams: int):
    found = search(requests_of(PROMPTS), Limits(rows, 10**6, 10**6), name=name, beams=beams)
    assert [done.ids for _, done in found] == [alone(ids, beams, 1, name=name)[0] for ids in PROMPTS]
    assert {done.finish for _, done in found} == {"length"}


def test_beams_find_what_the_greedy_way_does_not():
    found = search(requests_of(PROMPTS), Limits(100, 10**6, 10**6), beams=4)
    assert [done.ids for _, done in found] != [greedy(llama(), ids, NEW) for ids in PROMPTS]


@pytest.mark.parametrize("rows", [1, 9, 100])
def test_several_completions_of_a_row_are_its_best_beams_in_their_order(rows: int):
    found = search(requests_of(PROMPTS, samples=3), Limits(rows, 10**6, 10**6), beams=4, completions=3)
    assert [(request.row, request.sample) for request, _ in found] == [(row, i) for row in range(7) for i in range(3)]
    assert [done.ids for _, done in found] == [best for ids in PROMPTS for best in alone(ids, 4, 3)]
    assert all(len({tuple(done.ids) for _, done in found[row * 3 : row * 3 + 3]}) == 3 for row in range(7))


def test_a_beam_ends_with_an_end_token_and_keeps_it():
    ends = sorted({alone(ids, 3, 1)[0][2 + i % 4] for i, ids in enumerate(PROMPTS)})
    found = search(requests_of(PROMPTS, samples=2), Limits(100, 10**6, 10**6), ends, beams=3, completions=2)
    assert [done.ids for _, done in found] == [best for ids in PROMPTS for best in alone(ids, 3, 2, ends)]
    assert [done.finish for _, done in found] == ["stop" if done.ids[-1] in ends else "length" for _, done in found]
    assert {done.finish for _, done in found} == {"stop", "length"} or len({len(done.ids) for _, done in found}) > 2


def test_the_repetition_penalty_is_that_of_transformers():
    found = search(requests_of(PROMPTS[:3]), Limits(100, 10**6, 10**6), beams=3, repetition_penalty=1.5)
    assert [done.ids for _, done in found] == [alone(ids, 3, 1, penalty=1.5)[0] for ids in PROMPTS[:3]]


def test_the_models_own_generation_settings_do_not_come_in_between():
    model = family("Llama")
    model.generation_config.update(do_sample=True, temperature=9.0, top_k=3, num_beams=7, max_new_tokens=1)
    search_ = BeamSearch(Traced(model), GenerationConfig(max_new_tokens=NEW, beams=2), Limits(9, 999, 999), frozenset())
    found = list(search_.run(Asked(requests_of(PROMPTS[:2])), Watching()))
    assert [done.ids for _, done in found] == [alone(ids, 2, 1)[0] for ids in PROMPTS[:2]]


@pytest.mark.parametrize("tokens", [50, 200])
def test_a_batch_has_no_more_rows_and_places_than_its_limits_but_one_row_at_least(tokens: int):
    engine = Traced(llama())
    asked: list[tuple[int, int]] = []

    def generate(**settings: Any) -> Any:
        asked.append(tuple(settings["input_ids"].shape))
        return type(llama()).generate(llama(), **settings)

    engine.model = type("Model", (), {"generate": staticmethod(generate)})
    search_ = BeamSearch(engine, GenerationConfig(max_new_tokens=NEW, beams=2), Limits(6, tokens, 999), frozenset())
    found = list(search_.run(Asked(requests_of(PROMPTS)), Watching()))
    assert [done.ids for _, done in found] == [alone(ids, 2, 1)[0] for ids in PROMPTS]
    assert all(rows <= 3 for rows, _ in asked), "each of 6 / 2 prompts grows in two beams"
    assert all(rows == 1 or rows * 2 * (width + NEW) <= tokens for rows, width in asked)
    assert (max(rows for rows, _ in asked) == 1) is (tokens == 50)


def test_a_stop_ends_the_search_between_two_batches_and_every_token_is_told():
    config, watch = GenerationConfig(max_new_tokens=NEW, beams=2), Watching(turns=2)
    beams = BeamSearch(Traced(llama()), config, Limits(4, 10**6, 10**6), frozenset())
    queue = Asked(requests_of(PROMPTS))
    found = list(beams.run(queue, watch))
    assert [request.row for request, _ in found] == [0, 1, 2, 3]
    assert watch.tokens == 4 * NEW


def test_a_rank_without_rows_takes_part_while_others_have_some():
    class Lent(Traced):
        turns = 2

        def any(self, *flags: bool) -> tuple[bool, ...]:
            self.turns -= 1
            return (self.turns >= 0, *flags[1:])

    engine = Lent(llama())
    beams = BeamSearch(engine, GenerationConfig(max_new_tokens=2, beams=2), Limits(4, 99, 99), frozenset())
    assert list(beams.run(Asked([]), Watching())) == []
    assert engine.turns == -1
