"""A completion does not depend on the engine, the number of ranks, or the rows beside it.

Compared are the greedy tokens of every prompt with those of plain transformers, one prompt at a time, in fp32; and
their log-probabilities, to 1e-4. Prompts begin alike and are of different lengths; some tokens that the model comes to
end a completion, so rows leave at different times.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.generating import (
    answered_on,
    family_folder,
    greedy,
    inputs_of,
    logps_behind,
    planned,
    whole_model,
    write_generate_job,
)
from tests.making import write_jsonl
from tests.pool import Pool
from tests.running import WORDS
from velocity.data.tokenizer import load_tokenizer
from velocity.distributed.comm import Ranks
from velocity.inference.text import Spoken

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama tied": ("Llama", {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {}),
    "qwen2 tied": ("Qwen2", {"tie_word_embeddings": True}),
}
# rows at once; one at a time for half of the models, which is slow
WAYS = [("llama", 1), ("qwen2 tied", 1), *((model, 8) for model in MODELS)]
ROWS = 10
NEW = 8
Found = list[list[tuple[int, int, list[int], list[float]]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("generate")
    for name, (architecture, changes) in MODELS.items():
        family_folder(made / name, architecture, **changes)
    rows = [{"text": "Why? " + " ".join(WORDS[(i + k) % 15] for k in range(1 + i * 7 % 16))} for i in range(ROWS)]
    write_jsonl(made / "prompts.jsonl", rows)
    return made


@cache
def job_of(folder: Path, model: str) -> Path:
    """The job of a model, which ends completions with some of the tokens that it comes to."""
    changes: dict[str, Any] = {
        "model": str(folder / model), "output": str(folder / f"run {model}"), "generation.max_new_tokens": NEW,
        "generation.logprobs": True, "batch.rows": 8,
    }  # fmt: skip
    job = write_generate_job(folder / f"{model}.yaml", changes)
    prompts, plain = inputs_of(planned(job).job).prompts, whole_model(folder / model)
    free = [greedy(plain, prompts.ids(row), NEW) for row in range(ROWS)]
    ends = sorted({tokens[1 + row % 6] for row, tokens in enumerate(free)})[::2]
    names = load_tokenizer(folder / model).convert_ids_to_tokens(ends)
    return write_generate_job(job, {**changes, "generation.end_tokens": names})


@cache
def expected(folder: Path, model: str) -> dict[int, list[int]]:
    """The tokens of every row, by transformers alone; and the model's own log-probabilities are looked at, too."""
    job = planned(job_of(folder, model)).job
    prompts, plain = inputs_of(job).prompts, whole_model(folder / model)
    ends = Spoken(load_tokenizer(folder / model), job.generation, folder / model).ends
    return {row: greedy(plain, prompts.ids(row), NEW, ends) for row in range(ROWS)}


def assert_same(found: Found, folder: Path, model: str) -> None:
    """Every row is there once, with the tokens and log-probabilities of the whole model."""
    lines = [line for of_rank in found for line in of_rank]
    assert sorted(row for row, _, _, _ in lines) == list(range(ROWS))
    assert {row: ids for row, _, ids, _ in lines} == expected(folder, model)
    prompts, plain = inputs_of(planned(job_of(folder, model)).job).prompts, whole_model(folder / model)
    for row, _, ids, logps in lines:
        assert logps == pytest.approx(logps_behind(plain, prompts.ids(row), ids), abs=1e-4)


@pytest.mark.parametrize("model", MODELS)
def test_completions_end_at_different_places_so_that_a_wrong_row_would_show(folder: Path, model: str):
    found = expected(folder, model)
    assert len({tuple(ids) for ids in found.values()}) > ROWS / 2
    assert len({len(ids) for ids in found.values()}) >= 3
    assert inputs_of(planned(job_of(folder, model)).job).prompts.shared, "and what all begin with is computed once"


@pytest.mark.parametrize(("model", "rows"), WAYS)
def test_one_rank_of_plain_transformers(folder: Path, model: str, rows: int):
    found = answered_on(Ranks(), job_of(folder, model), ["generation.engine=transformers", f"batch.rows={rows}"])
    assert_same([found], folder, model)


@pytest.mark.parametrize(("model", "rows"), WAYS)
def test_two_ranks_of_plain_transformers(pool: Pool, folder: Path, model: str, rows: int):
    overrides = ["generation.engine=transformers", f"batch.rows={rows}"]
    assert_same(pool(answered_on, job_of(folder, model), overrides), folder, model)


@pytest.mark.parametrize(("model", "rows"), WAYS)
def test_two_ranks_that_share_each_layer(pool: Pool, folder: Path, model: str, rows: int):
    overrides = ["generation.engine=deepspeed", "strategy.tensor=2", f"batch.rows={rows}"]
    first, second = pool(answered_on, job_of(folder, model), overrides)
    assert [line[:3] for line in first] == [line[:3] for line in second], "both come to the same, in the same order"
    assert_same([first], folder, model)


@pytest.mark.parametrize(("model", "rows"), WAYS)
def test_two_ranks_that_stream_the_weights_with_very_different_numbers_of_rows(
    pool: Pool, folder: Path, model: str, rows: int
):
    found = pool(answered_on, job_of(folder, model), ["generation.engine=zero", f"batch.rows={rows}"])
    assert [len(of_rank) for of_rank in found] == [2, 8]
    assert_same(found, folder, model)


SPLIT = {"zero": "strategy.tensor=1", "deepspeed": "strategy.tensor=2"}


def by_row(found: Found) -> dict[tuple[int, int], list[int]]:
    return {(row, sample): ids for of_rank in found for row, sample, ids, _ in of_rank}


@pytest.mark.parametrize("engine", SPLIT)
def test_sampled_completions_are_those_of_one_process_on_engines_that_compute_together(
    pool: Pool, folder: Path, engine: str
):
    sampled = ["generation.temperature=1.2", "generation.top_p=0.9", "generation.completions=2"]
    alone = answered_on(Ranks(), job_of(folder, "llama"), [*sampled, "generation.engine=transformers", "batch.rows=3"])
    overrides = [*sampled, f"generation.engine={engine}", SPLIT[engine]]
    assert by_row(pool(answered_on, job_of(folder, "llama"), overrides)) == by_row([alone])
    assert len({tuple(ids) for _, _, ids, _ in alone}) == 2 * ROWS


@pytest.mark.parametrize("engine", SPLIT)
def test_the_best_beams_are_those_of_one_process_on_engines_that_compute_together(
    pool: Pool, folder: Path, engine: str
):
    beams = ["generation.beams=3", "generation.completions=2", "generation.logprobs=false"]
    alone = answered_on(Ranks(), job_of(folder, "qwen2"), [*beams, "generation.engine=transformers", "batch.rows=3"])
    overrides = [*beams, f"generation.engine={engine}", SPLIT[engine], "batch.rows=12"]
    found = pool(answered_on, job_of(folder, "qwen2"), overrides)
    assert by_row(found) == by_row([alone])
    assert len({len(ids) for _, _, ids, _ in alone}) > 1
