"""The parts of a generate job, as the plan says: engine, decoder, attention, limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.generating import family_folder, inputs_of, planned, write_generate_job
from tests.making import write_jsonl
from velocity.config.generate import GenerateJob
from velocity.data.prompts import PromptStore
from velocity.data.tokenizer import load_tokenizer
from velocity.distributed.comm import Ranks
from velocity.errors import UserError
from velocity.inference import build
from velocity.inference.beams import BeamSearch
from velocity.inference.build import attention_of, build_decoder, build_engine, limits, longest_row
from velocity.inference.hf_engine import TransformersEngine
from velocity.inference.probe import plain_logps
from velocity.inference.rolling import Limits, RollingBatch
from velocity.inference.text import Spoken


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("build")
    family_folder(made / "model", "Llama")
    family_folder(made / "gemma2", "Gemma2", sliding_window=16)
    write_jsonl(made / "prompts.jsonl", [{"prompt": "Why? " * count} for count in (1, 5)])
    return made


def job_in(folder: Path, **changes: Any) -> GenerateJob:
    path = write_generate_job(folder / "job.yaml", {"generation.engine": "transformers", **changes})
    return planned(path).job


def parts(folder: Path, **changes: Any) -> tuple[GenerateJob, Any, PromptStore]:
    job = job_in(folder, **changes)
    prompts = inputs_of(job).prompts
    return job, build_engine(job, Path(job.model.path), {}, Ranks(), longest_row(job, prompts.lengths)), prompts


def decoder_of(job: GenerateJob, engine: Any, prompts: PromptStore) -> RollingBatch | BeamSearch:
    folder = Path(job.model.path)
    spoken = Spoken(load_tokenizer(folder), job.generation, folder)
    return build_decoder(job, engine, spoken, longest_row(job, prompts.lengths), prompts.shared)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "torch.float32"), ("bf16", "torch.bfloat16")])
def test_a_model_is_loaded_in_its_precision_and_learns_nothing(folder: Path, precision: str, dtype: str):
    _, engine, _ = parts(folder, **{"strategy.precision": precision})
    assert isinstance(engine, TransformersEngine)
    assert {str(parameter.dtype) for parameter in engine.model.parameters()} == {dtype}
    assert not engine.model.training
    assert not any(parameter.requires_grad for parameter in engine.model.parameters())


@pytest.mark.parametrize(
    ("asked", "model", "taken"),
    [("auto", "model", "sdpa"), ("varlen", "model", "sdpa"), ("eager", "model", "eager"), ("auto", "gemma2", "eager")],
)
def test_attention_is_what_the_job_names_or_what_takes_a_mask(folder: Path, asked: str, model: str, taken: str):
    """varlen is for packed rows of training; sdpa has no softened scores."""
    named = {"path": str(folder / model), "attention": asked}
    assert attention_of(job_in(folder, model=named), folder / model) == taken
    _, engine, _ = parts(folder, model=named)
    assert engine.model.config._attn_implementation == taken


def test_an_engine_that_does_not_compute_what_its_model_is_answers_no_row(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def other(model: Any) -> Any:
        return [logps_V.roll(1) for logps_V in plain_logps(model)]

    monkeypatch.setattr(build, "plain_logps", other)
    with pytest.raises(UserError, match="does not compute what LlamaForCausalLM is"):
        parts(folder)


def test_the_longest_prompt_and_completion_decide_whether_rows_come_and_go(folder: Path):
    gemma = {"model": str(folder / "gemma2"), "data.prompts": {"path": str(folder / "prompts.jsonl"), "format": "text",
             "template": "{{ prompt[:4] }}"}}  # fmt: skip
    job, engine, prompts = parts(folder, **gemma, **{"generation.max_new_tokens": 4})
    assert int(prompts.lengths.max()) + 4 <= 16
    short = decoder_of(job, engine, prompts)
    assert isinstance(short, RollingBatch) and short.rolls
    job, engine, prompts = parts(folder, **gemma, **{"generation.max_new_tokens": 14})
    long = decoder_of(job, engine, prompts)
    assert isinstance(long, RollingBatch) and not long.rolls, "the window of 16 is shorter"


def test_a_batch_begins_with_what_the_prompts_share_and_has_the_jobs_limits(folder: Path):
    job, engine, prompts = parts(folder, **{"batch.rows": 3, "batch.tokens": 77})
    decoder = decoder_of(job, engine, prompts)
    assert isinstance(decoder, RollingBatch)
    assert decoder.shared == prompts.shared != []
    assert decoder.limits == Limits(3, 77, build.CPU_PROMPT_TOKENS)
    assert load_tokenizer(folder / "model").eos_token_id in decoder.rules.ends


def test_beams_are_searched_where_the_job_asks_for_them(folder: Path):
    job, engine, prompts = parts(folder, **{"generation.beams": 2})
    assert isinstance(decoder_of(job, engine, prompts), BeamSearch)


def test_a_gpu_reads_more_prompt_tokens_in_a_forward_than_a_processor(folder: Path):
    job = job_in(folder, **{"batch.rows": 3, "batch.tokens": 77})
    assert limits(job, "cuda").prompt_tokens == 8 * limits(job, "cpu").prompt_tokens == 32768


def test_a_batch_that_nobody_planned_is_a_defect(folder: Path):
    from tests.generating import generate_job

    with pytest.raises(UserError, match="was not planned"):
        limits(generate_job(folder), "cpu")
