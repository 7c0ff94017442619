"""A rolling batch in trouble: memory that runs out, a row that fails by itself. All others have the tokens they had.

Memory is an engine that raises for more than so many rows, or wherever a certain token is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.generating import (
    Answers,
    Asked,
    Cramped,
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
from velocity.distributed.comm import Ranks
from velocity.distributed.memory import is_out_of_memory
from velocity.inference.engine import Step
from velocity.inference.hf_engine import TransformersEngine

NEW = 10
BAD = 61  # a token that no other prompt or completion has
PROMPTS = prompts_of([24 - i for i in range(12)])


@cache
def llama(name: str = "Llama") -> Any:
    changes = {"Mistral": {"sliding_window": 5}}.get(name, {})
    return family(name, **changes)


def with_bad(place: int) -> list[list[int]]:
    """The prompts, of which the one at `place` alone holds the bad token, or comes to it."""
    assert not any(BAD in ids for ids in [*PROMPTS, *alone(PROMPTS)])
    changed = [*PROMPTS[place][:3], BAD, *PROMPTS[place][4:]]
    return [changed if number == place else ids for number, ids in enumerate(PROMPTS)]


def alone(prompts: Sequence[Sequence[int]], model: Any = None) -> list[list[int]]:
    return [greedy(model or llama(), ids, NEW) for ids in prompts]


@pytest.mark.parametrize("most", [1, 2, 3, 7, 11])
@pytest.mark.parametrize("name", ["Llama", "Mistral"])
def test_a_batch_that_does_not_fit_is_halved_until_it_does_and_its_tokens_are_the_same(name: str, most: int):
    engine = Cramped(llama(name), most)
    answers = answered(engine, requests_of(PROMPTS), rows=12, max_new_tokens=NEW, logprobs=True)
    assert engine.failures > 0
    assert tokens_of(answers) == alone(PROMPTS, llama(name))
    assert {done.error for done in answers.values()} == {None}
    for (row, _), done in answers.items():
        assert done.logps == pytest.approx(logps_behind(llama(name), PROMPTS[row], done.ids), abs=1e-4)


@pytest.mark.parametrize("shared", [0, 6])
def test_memory_that_runs_out_half_way_costs_no_token_and_makes_none_twice(shared: int):
    prompts = prompts_of([24 - i for i in range(8)], shared=shared)

    class Late(Cramped):
        """Its memory holds so many rows of at most 27 places."""

        def forward(self, step: Step) -> Tensor:
            self.most = 3 if step.mask.shape[-1] > 27 else 99
            return super().forward(step)

    engine, watch = Late(llama(), 99), Watching()
    batch = batch_of(engine, 24, rows=8, shared=prompts[0][:shared], max_new_tokens=NEW)
    answers: Answers = {
        (request.row, 0): done for request, done in batch.run(Asked(requests_of(prompts)), watch)
    }  # fmt: skip
    assert engine.failures > 0
    assert tokens_of(answers) == [greedy(llama(), ids, NEW) for ids in prompts]


@pytest.mark.parametrize("most", [2, 5])
def test_sampled_rows_go_on_with_their_own_numbers_after_memory_ran_out(most: int):
    asked: dict[str, Any] = {"rows": 12, "max_new_tokens": NEW, "temperature": 1.5, "repetition_penalty": 1.3}
    requests = requests_of(PROMPTS[:6], samples=2)
    plain = answered(Traced(llama()), requests, **asked)
    engine = Cramped(llama(), most)
    assert tokens_of(answered(engine, requests, **asked)) == tokens_of(plain)
    assert engine.failures > 0


@pytest.mark.parametrize("place", [0, 5, 11])
def test_a_row_that_does_not_fit_alone_fails_with_the_reason_and_all_others_are_completed(place: int):
    prompts = with_bad(place)
    engine = Cramped(llama(), 99, never=BAD)
    answers = answered(engine, requests_of(prompts), rows=12, max_new_tokens=NEW)
    failed = answers.pop((place, 0))
    assert (failed.finish, failed.ids) == ("error", [])
    assert failed.error is not None
    assert failed.error.startswith("out of memory, alone in its batch: CUDA out of memory. Tried to allocate 20.00 GiB")
    assert "\n" not in failed.error
    assert tokens_of(answers) == alone([ids for ids in prompts if BAD not in ids])


def test_a_batch_grows_again_by_a_quarter_after_some_turns_without_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("velocity.inference.rolling.GROW_EVERY", 4)
    prompts = prompts_of([12] * 60)

    class Relieved(Cramped):
        """Somebody else needs the memory, for ten forwards."""

        def forward(self, step: Step) -> Tensor:
            self.most = 2 if len(self.forwards) < 10 else 99
            return super().forward(step)

    engine = Relieved(llama(), 2)
    answers = answered(engine, requests_of(prompts), rows=8, max_new_tokens=4)
    assert tokens_of(answers) == [greedy(llama(), ids, 4) for ids in prompts]
    rows = [rows for rows, _, _ in engine.forwards]
    assert rows[:3] == [8, 4, 2], "halved"
    # 2 // 4 and 3 // 4 are 0, so 1 more each time; 4 // 4 up to 7 // 4 are 1
    assert sorted({count for count in rows[10:] if count > 1}) == [2, 3, 4, 5, 6, 7, 8], "and as many as before"


def test_a_batch_that_was_never_too_large_does_not_grow_past_its_limit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("velocity.inference.rolling.GROW_EVERY", 1)
    engine = Traced(llama())
    answered(engine, requests_of(prompts_of([6] * 40)), rows=4, max_new_tokens=3)
    assert max(rows for rows, _, _ in engine.forwards) == 4


def test_where_others_compute_in_step_memory_that_runs_out_ends_the_run():
    engine = Cramped(llama(), 3, recovers=False)
    with pytest.raises(torch.OutOfMemoryError):
        answered(engine, requests_of(PROMPTS), rows=12, max_new_tokens=NEW)


def test_any_other_error_ends_the_run():
    class Broken(Traced):
        def forward(self, step: Step) -> Tensor:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        answered(Broken(llama()), requests_of(PROMPTS), max_new_tokens=NEW)


def _allocate() -> object:
    return torch.empty(1 << 50)


def _python() -> object:
    raise MemoryError


@pytest.mark.parametrize("fail", [_allocate, _python])
def test_what_allocators_raise_is_known_as_memory_that_ran_out(fail: Callable[[], object]):
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        fail()
    assert is_out_of_memory(caught.value)


def test_other_errors_are_not_taken_for_memory_that_ran_out():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not is_out_of_memory(ValueError("memory"))


@cache
def with_nan() -> Any:
    """A model that has no number for the bad token."""
    model = family("Llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[BAD] = torch.nan
    return model


@pytest.mark.parametrize("rows", [1, 4, 12])
@pytest.mark.parametrize("shared", [0, 2])
def test_a_row_whose_logits_are_not_finite_fails_and_its_neighbours_do_not_notice(rows: int, shared: int):
    head = PROMPTS[0][:shared]
    prompts = [[*head, *ids] for ids in with_bad(4)]
    answers = answered(Traced(with_nan()), requests_of(prompts), rows=rows, shared=head, max_new_tokens=NEW)
    failed = answers.pop((4, 0))
    assert (failed.finish, failed.ids, failed.error) == ("error", [], "the model's logits are not finite")
    expected = [greedy(with_nan(), ids, NEW) for ids in prompts if BAD not in ids]
    assert tokens_of(answers) == expected


@pytest.mark.parametrize("asked", [{}, {"temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.2}])
def test_every_row_of_a_model_without_numbers_fails_and_the_run_ends(asked: dict[str, Any]):
    model = family("Llama")
    with torch.no_grad():
        model.get_output_embeddings().weight[:] = torch.nan
    answers = answered(Traced(model), requests_of(PROMPTS), rows=5, max_new_tokens=NEW, logprobs=True, **asked)
    assert len(answers) == len(PROMPTS)
    assert {done.finish for done in answers.values()} == {"error"}


class Overflowing(TransformersEngine):
    """Plain transformers, but for a row that has a certain token the logits overflow."""

    def __init__(self, model: Any, token: int) -> None:
        super().__init__(model, Ranks())
        self.token = token

    def forward(self, step: Step) -> Tensor:
        logits_BV = super().forward(step)
        logits_BV[step.ids_BQ[:, -1] == self.token, 0] = torch.inf
        return logits_BV


@pytest.mark.parametrize("rows", [3, 12])
def test_a_row_that_overflows_half_way_keeps_the_tokens_it_had_and_says_so(rows: int):
    free = alone(PROMPTS)
    token = free[2][4]
    ends = {row: ids.index(token) + 1 for row, ids in enumerate(free) if token in ids[:-1]}
    answers = answered(Overflowing(llama(), token), requests_of(PROMPTS), rows=rows, max_new_tokens=NEW)
    for row, ids in enumerate(free):
        done = answers[row, 0]
        if PROMPTS[row][-1] == token:
            assert (done.ids, done.finish) == ([], "error")
        elif row in ends:
            assert (done.ids, done.finish) == (ids[: ends[row]], "error")
        else:
            assert (done.ids, done.finish, done.error) == (ids, "length", None)
    assert 0 < len(ends) < len(PROMPTS)
