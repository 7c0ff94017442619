"""What a generate job can say: its defaults, what contradicts itself, and what makes it another job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.generating import job_values, planned, question_folder, write_generate_job
from tests.making import generate_data
from velocity.config.base import Mark
from velocity.config.generate import GenerateJob
from velocity.config.inference import with_engine
from velocity.config.job import LoadedJob
from velocity.config.load import job_of, load_job, option_names, read_resolved
from velocity.config.resolved import differences, render
from velocity.errors import UserError

FOLDER = Path("folder")


def job(changes: dict[str, Any] | None = None) -> GenerateJob:
    found: GenerateJob = job_of(job_values(FOLDER, changes), Mark("job.yaml"))
    return found


def refused(folder: Path, *overrides: str) -> list[str]:
    """The lines of what is said of a job file with these overrides."""
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(generate_data(folder)))
    with pytest.raises(UserError) as caught:
        load_job(path, overrides)
    assert caught.value.exit_status == 2
    return str(caught.value).splitlines()


def test_what_a_job_leaves_out_is_greedy_one_completion_and_planned():
    found = GenerateJob.model_validate({
        "task": "generate", "model": "m", "output": "o", "data": {"prompts": "p.jsonl"}
    })  # fmt: skip
    generation = found.generation
    assert (generation.engine, generation.max_new_tokens, generation.completions) == ("auto", 256, 1)
    assert (generation.temperature, generation.top_p, generation.top_k, generation.min_p) == (0.0, 1.0, 0, 0.0)
    assert (generation.repetition_penalty, generation.beams, generation.stop, generation.end_tokens) == (1.0, 1, (), ())
    assert (generation.logprobs, generation.format) == (False, "jsonl")
    assert (found.batch.rows, found.batch.tokens) == ("auto", "auto")
    assert (found.strategy.precision, found.strategy.tensor, found.strategy.offload.parameters) == ("auto",) * 3
    assert (found.data.max_prompt_tokens, found.data.on_long_prompt, found.data.on_bad_record) == (
        None,
        "error",
        "error",
    )


def test_one_value_stands_for_a_list_of_one_and_a_path_for_a_source():
    found = job({"data.prompts": "a.jsonl", "generation.stop": "\n\n", "generation.end_tokens": "<|end|>"})
    assert [source.path for source in found.data.prompts] == ["a.jsonl"]
    assert (found.generation.stop, found.generation.end_tokens) == (("\n\n",), ("<|end|>",))
    both = job({"data.prompts": ["a.jsonl", {"path": "b.csv", "template": "{{ x }}", "fields": {"prompt": "q"}}]})
    assert [(source.path, source.template) for source in both.data.prompts] == [("a.jsonl", None), ("b.csv", "{{ x }}")]
    assert job({"strategy": "auto"}).strategy == GenerateJob.model_fields["strategy"].default


CONTRADICTIONS: dict[str, tuple[tuple[str, ...], str, str]] = {
    "top_p without a temperature": (("generation.top_p=0.9",), "top_p does not go with temperature: 0", "above 0"),
    "top_k without a temperature": (("generation.top_k=5",), "top_k does not go with temperature: 0", "above 0"),
    "min_p without a temperature": (("generation.min_p=0.1",), "min_p does not go with temperature: 0", "above 0"),
    "several completions that would be alike": (
        ("generation.completions=3",), "completions=3 would all be alike at temperature: 0", "above 0",
    ),
    "more completions than beams": (
        ("generation.completions=3", "generation.beams=2"), "completions=3 would all be alike", "above 0",
    ),
    "beams that are sampled": (
        ("generation.beams=2", "generation.temperature=1"), "beams=2 does not go with temperature", "leave one",
    ),
    "beams with a stop text": (
        ("generation.beams=2", "generation.stop=x"), "beams=2 does not go with stop", "leave one",
    ),
    "beams with log-probabilities": (
        ("generation.beams=2", "generation.logprobs=true"), "beams=2 does not go with logprobs", "leave one",
    ),
    "a split model that is streamed": (
        ("strategy.tensor=2", "generation.engine=zero"), "strategy.tensor=2 does not go with generation.engine: zero",
        "engine: deepspeed",
    ),
    "a split model that is whole": (
        ("strategy.tensor=2", "generation.engine=transformers"), "strategy.tensor=2 does not go", "engine: deepspeed",
    ),
    "a whole model that waits": (
        ("strategy.offload.parameters=cpu", "generation.engine=transformers"),
        "strategy.offload.parameters=cpu does not go with engine: transformers", "engine: zero",
    ),
    "a split model that waits": (
        ("strategy.offload={parameters: nvme, path: /x}", "generation.engine=deepspeed"),
        "strategy.offload.parameters=nvme does not go with engine: deepspeed", "engine: zero",
    ),
    "a fast disk without a folder": (
        ("strategy.offload.parameters=nvme",), "takes nvme and path together", "path: /nvme",
    ),
    "a folder without a fast disk": (
        ("strategy.offload={parameters: cpu, path: /x}",), "takes nvme and path together", "path: /nvme",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_contradiction_is_refused_with_what_to_change(tmp_path: Path, name: str):
    overrides, what, fix = CONTRADICTIONS[name]
    lines = refused(tmp_path, *overrides)
    assert len(lines) <= 3
    assert what in lines[0]
    assert fix in lines[-1]


@pytest.mark.parametrize(
    "changes",
    [
        {"generation.temperature": 0.7, "generation.top_p": 0.9, "generation.top_k": 5, "generation.completions": 9},
        {"generation.top_p": 1.0, "generation.top_k": 0, "generation.min_p": 0.0},  # written out, they choose nothing
        {"generation.beams": 4, "generation.completions": 4, "generation.repetition_penalty": 1.2},
        {"generation.engine": "deepspeed", "strategy.tensor": 2},
        {"strategy.tensor": 2},
        {"generation.engine": "zero", "strategy.offload": {"parameters": "nvme", "path": "/fast"}},
        {"strategy.offload": {"parameters": "cpu"}},
        {"generation.engine": "transformers", "strategy.offload": {"parameters": "none"}, "strategy.tensor": 1},
    ],
)
def test_what_does_not_contradict_itself_is_taken(changes: dict[str, Any]):
    job(changes)


@pytest.mark.parametrize(
    "override",
    [
        "generation.temperature=-0.1", "generation.temperature=.nan", "generation.temperature=.inf",
        "generation.top_p=0", "generation.top_p=1.1", "generation.min_p=1", "generation.top_k=-1",
        "generation.max_new_tokens=0", "generation.completions=0", "generation.beams=0",
        "generation.repetition_penalty=0", "generation.stop=['']", "generation.format=csv", "generation.engine=vllm",
        "batch.rows=0", "batch.tokens=0", "data.max_prompt_tokens=0", "data.on_long_prompt=drop", "data.prompts=[]",
        "strategy.tensor=0", "seed=-1",
    ],
)  # fmt: skip
def test_a_value_out_of_its_limits_is_refused_by_name(tmp_path: Path, override: str):
    lines = refused(tmp_path, "generation.completions=1", override)
    assert lines[0].startswith(override.partition("=")[0])
    assert len(lines) <= 3


@pytest.mark.parametrize("override", ["optimizer.learning_rate=1", "batch.micro=2", "strategy.zero=3", "data.train=x"])
def test_what_only_training_has_is_unknown_here(tmp_path: Path, override: str):
    assert refused(tmp_path, override)[0].startswith("unknown key '")


def test_a_misspelt_key_is_told_its_nearest_name(tmp_path: Path):
    assert refused(tmp_path, "generation.temprature=1")[2] == "  fix:   did you mean 'temperature'?"


WHOLE: list[dict[str, Any]] = [
    {},
    {
        "generation.temperature": 0.1 + 0.2, "generation.top_p": 0.95, "generation.completions": 2,
        "generation.stop": ["\n\n", "a: #b", '"'], "generation.end_tokens": ["<|end|>"], "generation.logprobs": True,
    },
    {"data.prompts": [{"path": "a", "template": "{{ x }}: {% if y %}\n#z{% endif %}", "fields": {"prompt": "q: r"}}]},
    {"generation.engine": "zero", "strategy.offload": {"parameters": "cpu"}, "batch.rows": 3, "batch.tokens": 77},
    {"data.max_prompt_tokens": 9, "data.on_long_prompt": "cut", "generation.format": "parquet", "seed": 7},
]  # fmt: skip


@pytest.mark.parametrize("changes", WHOLE)
def test_the_resolved_job_of_a_run_reads_back_as_the_same_job(tmp_path: Path, changes: dict[str, Any]):
    question_folder(tmp_path, 1)
    loaded = planned(write_generate_job(tmp_path / "job.yaml", changes))
    (tmp_path / "resolved.yaml").write_text(render(loaded), "utf-8")
    again = read_resolved(tmp_path / "resolved.yaml")
    assert again == loaded.job
    assert render(LoadedJob(again, loaded.origins, loaded.path)) == render(loaded)
    assert not differences(again, loaded.job)


FREE: list[dict[str, Any]] = [
    {"generation.engine": "zero"}, {"strategy.tensor": 2}, {"strategy.offload": {"parameters": "cpu"}},
    {"strategy.precision": "bf16"}, {"batch.rows": 1}, {"batch.tokens": 9}, {"launch.processes": 4},
    {"data.cache": "elsewhere"}, {"output": "moved"},
]  # fmt: skip


@pytest.mark.parametrize("changes", FREE)
def test_how_rows_are_computed_may_change_while_a_run_goes_on(changes: dict[str, Any]):
    assert differences(job(), job(changes)) == []


FIXED: list[dict[str, Any]] = [
    {"generation.temperature": 0.5}, {"generation.max_new_tokens": 9}, {"generation.stop": "x"},
    {"generation.logprobs": True}, {"generation.format": "parquet"}, {"data.prompts": "others.jsonl"},
    {"data.chat_template": "t.jinja"}, {"data.max_prompt_tokens": 9}, {"data.on_long_prompt": "cut"}, {"seed": 1},
    {"model": "another"}, {"model": {"path": "folder/model", "attention": "eager"}},
]  # fmt: skip


@pytest.mark.parametrize("changes", FIXED)
def test_what_completions_say_may_not_and_is_named(changes: dict[str, Any]):
    found = differences(job(), job(changes))
    assert found
    assert all(line.startswith(next(iter(changes))) for line in found)


def test_every_free_key_is_one():
    names = option_names()
    for key in GenerateJob.FREE:
        assert any(name == key or name.startswith(f"{key}.") for name in names), key


def test_a_planned_job_differs_in_engine_and_strategy_alone():
    found = with_engine(job(), "deepspeed", tensor=2, precision="bf16")
    assert (found.generation.engine, found.strategy.tensor, found.strategy.precision) == ("deepspeed", 2, "bf16")
    assert differences(job(), found) == []
    assert found.generation.max_new_tokens == job().generation.max_new_tokens
