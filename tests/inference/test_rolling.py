"""A rolling batch against plain transformers: each prompt alone, in fp32. Tokens are equal, log-probabilities to 1e-4.

Rows are of different lengths, leave at different times, and others take their places.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.generating import (
    Answers,
    Asked,
    Traced,
    Watching,
    answered,
    batch_of,
    family,
    greedy,
    logps_behind,
    prompts_of,
    requests_of,
    tokens_of,
)
from tests.making import tiny_model
from velocity.distributed.comm import Ranks
from velocity.inference.engine import Step
from velocity.inference.hf_engine import TransformersEngine

NEW = 9
LENGTHS = (23, 17, 16, 16, 9, 8, 7, 6)  # longest first, as a run's queue has them
MODELS: dict[str, tuple[str, dict[str, Any], bool]] = {
    # name: architecture, settings, whether rows can come and go
    "llama": ("Llama", {}, True),
    "llama tied": ("Llama", {"tie_word_embeddings": True}, True),
    "qwen2": ("Qwen2", {}, True),
    "qwen2 tied": ("Qwen2", {"tie_word_embeddings": True}, True),
    "mistral, window shorter than a prompt": ("Mistral", {"sliding_window": 5}, False),
    "mistral, window longer than all": ("Mistral", {"sliding_window": 32}, True),
    "gemma2, window shorter than a prompt": ("Gemma2", {"sliding_window": 5}, False),
    "gemma2, window longer than all": ("Gemma2", {"sliding_window": 32}, True),
    "gpt2": ("GPT2", {}, True),
}


@cache
def made(name: str, attention: str) -> Any:
    architecture, changes, _ = MODELS[name]
    model = family(architecture, **changes)
    model.set_attn_implementation(attention)
    return model


@cache
def expected(name: str, attention: str, shared: int) -> list[list[int]]:
    return [greedy(made(name, attention), ids, NEW) for ids in prompts_of(LENGTHS, shared=shared)]


def assert_logps(model: Any, prompts: Sequence[Sequence[int]], answers: Answers) -> None:
    """Each is that of one forward over prompt and completion."""
    for (row, _), done in answers.items():
        assert done.logps == pytest.approx(logps_behind(model, prompts[row], done.ids), abs=1e-4)


WAYS = [(name, way) for name in MODELS for way in ("sdpa", "eager") if (name[:6], way) != ("gemma2", "sdpa")]


@pytest.mark.parametrize("shared", [0, 5])
@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize(("name", "attention"), WAYS)
def test_completions_are_those_of_each_prompt_alone(name: str, attention: str, rows: int, shared: int):
    model, prompts = made(name, attention), prompts_of(LENGTHS, shared=shared)
    engine = Traced(model)
    answers = answered(
        engine, requests_of(prompts), rows=rows, shared=prompts[0][:shared], max_new_tokens=NEW, logprobs=True
    )
    assert tokens_of(answers) == expected(name, attention, shared)
    assert_logps(model, prompts, answers)
    assert max(forward[0] for forward in engine.forwards) == rows


@pytest.mark.parametrize("name", MODELS)
def test_a_window_decides_whether_rows_come_and_go(name: str):
    batch = batch_of(Traced(made(name, "eager")), max(LENGTHS), shared=[1, 2, 3], max_new_tokens=NEW)
    assert batch.rolls is MODELS[name][2]
    assert bool(batch.shared) is batch.rolls


@pytest.mark.parametrize("name", ["GPTNeo", "Bloom", "OPT", "Gemma2"])
@pytest.mark.parametrize("rows", [2, 6])
def test_padding_between_a_shared_beginning_and_a_short_prompt_counts_for_nothing(name: str, rows: int):
    """Not for a local window (GPT-Neo), a bias by distance (BLOOM), or positions that are learned (OPT)."""
    import transformers

    shapes: dict[str, dict[str, Any]] = {
        "GPTNeo": {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "window_size": 6,
                   "attention_types": [[["global", "local"], 1]]},
        "Bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 4},
        "OPT": {"hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 128, "num_hidden_layers": 2,
                "num_attention_heads": 4, "init_std": 0.2},
        "Gemma2": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
                   "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 6},
    }  # fmt: skip
    ends = {"eos_token_id": None, "bos_token_id": None, "pad_token_id": None}
    config = getattr(transformers, f"{name}Config")(vocab_size=97, initializer_range=0.2, **ends, **shapes[name])
    model = tiny_model(config)
    prompts = prompts_of([39, 33, 19, 18, 18, 17], shared=16)
    answers = answered(
        Traced(model), requests_of(prompts), rows=rows, shared=prompts[0][:16], max_new_tokens=6, logprobs=True
    )
    assert tokens_of(answers) == [greedy(model, ids, 6) for ids in prompts]
    assert_logps(model, prompts, answers)


def ends_of(model: Any, prompts: Sequence[Sequence[int]], new: int) -> list[int]:
    """Tokens that end the prompts' completions at many different places."""
    free = [greedy(model, ids, new) for ids in prompts]
    return sorted({tokens[2 + number % (new - 4)] for number, tokens in enumerate(free)})[::3]


@pytest.mark.parametrize("shared", [0, 4])
@pytest.mark.parametrize("rows", [2, 5])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "mistral, window shorter than a prompt"])
def test_rows_that_leave_and_join_at_different_times_are_completed_as_if_alone(name: str, rows: int, shared: int):
    model, prompts = made(name, "sdpa"), prompts_of([40 - 3 * i for i in range(12)], shared=shared)
    ends = ends_of(model, prompts, 12)
    answers = answered(
        Traced(model), requests_of(prompts), rows=rows, shared=prompts[0][:shared], ends=ends,
        max_new_tokens=12, logprobs=True,
    )  # fmt: skip
    assert tokens_of(answers) == [greedy(model, ids, 12, ends) for ids in prompts]
    assert_logps(model, prompts, answers)
    lengths = {len(done.ids) for done in answers.values()}
    assert len(lengths) >= (2 if name == "gpt2" else 3), "they left at different times"
    for done in answers.values():
        assert done.finish == ("stop" if done.ids[-1] in ends else "length")


def test_newcomers_take_free_places_while_others_go_on():
    model, prompts = made("llama", "sdpa"), prompts_of([12] * 16)
    engine, ends = Traced(model), ends_of(model, prompts, 16)
    answered(engine, requests_of(prompts), rows=4, ends=ends, max_new_tokens=16)
    lengths = [len(greedy(model, ids, 16, ends)) for ids in prompts]
    apart = sum(max(lengths[start : start + 4]) for start in range(0, 16, 4))  # each four waiting for its slowest
    starts = [place for place, (_, queries, _) in enumerate(engine.forwards) if queries > 1]
    assert len(starts) > 4 and len(engine.forwards) - len(starts) < apart - 4
    assert max(rows for rows, _, _ in engine.forwards) == 4


def test_what_all_prompts_begin_with_is_computed_once_and_in_one_row():
    model, prompts = made("llama", "sdpa"), prompts_of([20, 20, 20, 20], shared=13)
    engine = Traced(model)
    answered(engine, requests_of(prompts), rows=2, shared=prompts[0][:13], max_new_tokens=3)
    assert [forward[:2] for forward in engine.forwards if forward[1] > 1] == [(1, 13), (2, 7), (2, 7)]


def test_prompts_that_are_alike_are_computed_once_and_answered_each_with_its_own_number():
    model, prompts = made("llama", "sdpa"), prompts_of([9, 6])
    engine = Traced(model)
    answers = answered(engine, requests_of(prompts, samples=5), rows=10, max_new_tokens=6, temperature=3.0)
    assert engine.forwards[0] == (2, 9, 9)
    assert all(rows == 10 for rows, queries, _ in engine.forwards if queries == 1)
    assert len({tuple(done.ids) for (row, _), done in answers.items() if row == 0}) == 5


def test_places_that_only_a_finished_row_needed_are_given_back():
    model = made("llama", "sdpa")
    prompts = prompts_of([100, 6, 5])
    ends = greedy(model, prompts[0], 2)[1:]
    others = [greedy(model, ids, 12, ends) for ids in prompts[1:]]
    assert all(len(tokens) > 6 for tokens in others), "the long one ends first"
    engine = Traced(model)
    answers = answered(engine, requests_of(prompts), rows=3, ends=ends, max_new_tokens=12)
    assert tokens_of(answers)[1:] == others
    # 100 places for the prompts and one for a token; then what the longer of the others has: 6 and two tokens, so far
    assert [places for _, _, places in engine.forwards][:4] == [100, 101, 6 + 2, 6 + 3]


@pytest.mark.parametrize("tokens", [1, 60, 200, 500])
def test_no_more_places_are_taken_than_the_limit_but_a_row_is_always_taken(tokens: int):
    model, prompts = made("llama", "sdpa"), prompts_of([40 - 3 * i for i in range(12)])
    engine, ends = Traced(model), ends_of(model, prompts, 16)
    answers = answered(engine, requests_of(prompts), rows=8, tokens=tokens, ends=ends, max_new_tokens=16)
    assert tokens_of(answers) == [greedy(model, ids, 16, ends) for ids in prompts]
    assert all(rows == 1 or rows * places <= tokens for rows, _, places in engine.forwards)
    if tokens == 500:
        assert max(rows for rows, _, _ in engine.forwards) > 4, "and what is allowed is used"


def test_one_forward_reads_no_more_prompt_tokens_than_its_limit():
    model, prompts = made("llama", "sdpa"), prompts_of([30, 20, 20, 20, 5, 5, 5, 5], shared=4)
    engine = Traced(model)
    answered(
        engine, requests_of(prompts), rows=8, prompt_tokens=40, shared=prompts[0][:4], max_new_tokens=4
    )  # fmt: skip
    starts = [forward[:2] for forward in engine.forwards[1:] if forward[1] > 1]
    assert all(rows == 1 or rows * queries <= 40 for rows, queries in starts)
    # 26 tokens behind the shared 4: a second row would make 52; then 2 x 16; then 16 + 1 and the first of the fives
    assert starts[:2] == [(1, 26), (2, 16)]


def test_rows_that_have_ended_make_a_batch_at_most_an_eighth_larger_than_its_limit():
    model = made("llama", "sdpa")
    by_first = {greedy(model, ids, 1)[0]: ids for ids in prompts_of([8] * 150)}
    assert len(by_first) > 40
    # of the first 16, three end at their second token: more than an eighth, so they leave; then one at its third, which
    # stays beside the other 12 as three quarters are alive, and others are admitted
    ends_at = {first: 2 if place < 3 else 3 if place < 4 else 8 for place, first in enumerate(by_first)}
    engine = Traced(model)
    answers = answered(
        engine, requests_of(list(by_first.values())), rows=16, max_new_tokens=12,
        stopped=lambda ids: len(ids) == ends_at[ids[0]],
    )  # fmt: skip
    assert [len(answers[row, 0].ids) for row in range(len(by_first))] == list(ends_at.values())
    assert max(rows for rows, _, _ in engine.forwards) <= 18


def test_a_completion_ends_with_a_token_a_text_or_its_length():
    model, prompts = made("llama", "sdpa"), prompts_of([9, 5, 7], seed=2)
    free = [greedy(model, ids, 8) for ids in prompts]
    end, text = free[0][3], free[1][2:5]
    assert free[0].index(end) == 3 and end not in free[1] + free[2], "only the first completion comes to it"

    def stopped(ids: Sequence[int]) -> bool:
        return list(ids[-3:]) == text

    answers = answered(Traced(model), requests_of(prompts), ends=[end], stopped=stopped, max_new_tokens=8)
    assert tokens_of(answers) == [free[0][:4], free[1][:5], free[2]]
    assert [answers[row, 0].finish for row in range(3)] == ["stop", "stop", "length"]


def test_one_new_token_is_one_forward():
    model, prompts = made("llama", "sdpa"), prompts_of([9, 5, 7])
    engine = Traced(model)
    answers = answered(engine, requests_of(prompts), ends=[greedy(model, prompts[1], 1)[0]], max_new_tokens=1)
    assert tokens_of(answers) == [greedy(model, ids, 1) for ids in prompts]
    assert [answers[row, 0].finish for row in range(3)] == ["length", "stop", "length"]
    assert len(engine.forwards) == 1


@pytest.mark.parametrize("rows", [1, 2, 6])
def test_the_repetition_penalty_is_that_of_transformers_for_rows_that_join_too(rows: int):
    model, prompts = made("llama tied", "sdpa"), prompts_of([20 - 3 * i for i in range(6)])
    ends = ends_of(model, prompts, 12)
    answers = answered(
        Traced(model), requests_of(prompts), rows=rows, ends=ends, max_new_tokens=12, repetition_penalty=1.4
    )
    assert tokens_of(answers) == [greedy(model, ids, 12, ends, penalty=1.4) for ids in prompts]
    assert tokens_of(answers) != [greedy(model, ids, 12, ends) for ids in prompts]


def test_log_probabilities_are_the_models_own_before_penalty_and_temperature():
    model, prompts = made("llama", "sdpa"), prompts_of([9, 5])
    answers = answered(
        Traced(model), requests_of(prompts, samples=3), max_new_tokens=6, temperature=1.7, top_k=40,
        repetition_penalty=1.4, logprobs=True,
    )  # fmt: skip
    assert_logps(model, prompts, answers)


def test_log_probabilities_are_kept_only_where_they_are_asked_for():
    answers = answered(Traced(made("llama", "sdpa")), requests_of(prompts_of([5])), max_new_tokens=3)
    assert answers[0, 0].logps == []


def test_who_looks_on_is_told_every_token_and_can_stop_the_run_between_two():
    model, prompts = made("llama", "sdpa"), prompts_of([9, 5, 7, 6])
    watch, queue = Watching(), Asked(requests_of(prompts))
    batch = batch_of(Traced(model), 9, rows=2, max_new_tokens=5)
    assert sum(len(done.ids) for _, done in batch.run(queue, watch)) == watch.tokens == 4 * 5

    watch, queue = Watching(turns=7), Asked(requests_of(prompts))
    found = list(batch_of(Traced(model), 9, rows=2, max_new_tokens=5).run(queue, watch))
    # five turns for the first two rows; two for the next, which stay unfinished
    assert [request.row for request, _ in found] == [0, 1]
    assert watch.tokens == 2 * 5 + 2 * 2
    assert queue.peek() is None


def test_an_empty_queue_asks_nothing_of_the_engine():
    engine = Traced(made("llama", "sdpa"))
    assert list(batch_of(engine, 5, max_new_tokens=2).run(Asked([]), Watching())) == []
    assert engine.forwards == []


class InStep(Traced):
    """One of several ranks that compute together, of which the others are busy for so many turns."""

    lockstep = True

    def __init__(self, model: Any, turns: int) -> None:
        super().__init__(model)
        self.turns, self.idled = turns, 0
        self.flags: list[tuple[bool, ...]] = []

    def idle(self) -> None:
        self.idled += 1

    def any(self, *flags: bool) -> tuple[bool, ...]:
        self.turns -= 1
        self.flags.append(flags)
        return (flags[0] or self.turns >= 0, *flags[1:])


def test_a_rank_that_has_nothing_to_do_takes_part_in_the_turns_of_the_others():
    model, prompts = made("llama", "sdpa"), prompts_of([6, 5])
    engine = InStep(model, turns=9)
    answers = answered(engine, requests_of(prompts), rows=2, max_new_tokens=4)
    assert tokens_of(answers) == [greedy(model, ids, 4) for ids in prompts]
    # a turn is one forward: four of our own, the others idle; the tenth time all ranks agree that there is no more
    assert (len(engine.forwards), engine.idled) == (4, 5)
    assert [flags[0] for flags in engine.flags] == [True] * 4 + [False] * 6


def test_a_rank_stops_as_soon_as_any_other_is_asked_to():
    class Stopped(Traced):
        def any(self, *flags: bool) -> tuple[bool, ...]:
            return flags[0], len(self.forwards) >= 3

    engine = Stopped(made("llama", "sdpa"))
    assert answered(engine, requests_of(prompts_of([6, 5])), max_new_tokens=9) == {}
    assert len(engine.forwards) == 3


class Follower(TransformersEngine):
    """A rank of a group whose leader always chooses the same token."""

    leads = False

    def __init__(self, model: Any) -> None:
        super().__init__(model, Ranks())
        self.fed: list[int] = []

    def forward(self, step: Step) -> Tensor:
        self.fed += step.ids_BQ[:, -1].tolist()
        return super().forward(step)

    def same(self, tokens_B: Tensor) -> Tensor:
        return torch.full_like(tokens_B, 42)


def test_a_follower_goes_on_with_its_leaders_tokens():
    engine = Follower(made("llama", "sdpa"))
    answers = answered(engine, requests_of([[1, 2], [3, 4]]), max_new_tokens=3)
    assert tokens_of(answers) == [[42, 42, 42], [42, 42, 42]]
    assert engine.fed == [2, 4, 42, 42, 42, 42]
