"""The resolved job as a file: it reads back as the same job, and says what makes two jobs different."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.evaluating import write_evaluate_job
from tests.making import generate_data, write_job
from velocity.config.evaluate import EvaluateJob
from velocity.config.generate import GenerateJob
from velocity.config.job import Job, LoadedJob
from velocity.config.load import load_job, read_resolved
from velocity.config.resolved import differences, render
from velocity.config.training import TrainingJob


def load(folder: Path, *overrides: str, **sections: Any) -> LoadedJob:
    return load_job(write_job(folder / "job.yaml", **sections), overrides)


def through_a_file(loaded: LoadedJob, folder: Path) -> Job:
    (folder / "resolved.yaml").write_text(render(loaded), "utf-8")
    return read_resolved(folder / "resolved.yaml")


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"optimizer": {"kind": "adamw", "learning_rate": 1e-5, "epsilon": 1e-30, "betas": [0.9, 0.999]}},
        {"data": {"train": ["a.jsonl", {"path": "b", "weight": 0.1, "fields": {"text": "the: body", "a b": "#c"}}]}},
        {"data": {"eval": {"seen": "c", "un: seen": ["d", "e"], "no": "f", "1": "g"}}},
        {"output": "a: b #c 'd' \"e\" \\ é 🙂 \n f"},
        {"output": "null"},
        {"data": {"eval": {"v1.5": "a", "v1.x": "c", "v1": {"path": "b"}}}},
        {"tracking": ["tensorboard", "wandb"], "seed": 3, "strategy": {"zero": 3}, "launch": {"processes": 2}},
        {"task": "preference", "preference": {"loss": "ipo", "reference": "live"}, "adapter": {"targets": ["a", "b"]}},
        {"deepspeed": {"a": {"b": [], "c": {}, "d": None, "e": [1, {"f": 2}], "g": [{}], "h": [{"i": {"j": [1]}}]}}},
        {"deepspeed": {"on": True, "x": [{"y": 1, "z": [{"q": 2}, {"q": 3}]}, {"y": "yes"}], "1.5": "1.5"}},
    ],
)
def test_a_rendered_job_reads_back_as_the_same_job(tmp_path: Path, sections: dict[str, Any]):
    loaded = load(tmp_path, **sections)
    assert through_a_file(loaded, tmp_path) == loaded.job
    assert render(LoadedJob(through_a_file(loaded, tmp_path), loaded.origins, loaded.path)) == render(loaded)


def test_a_word_that_looks_like_a_number_reads_back_as_a_word(tmp_path: Path):
    loaded = load(tmp_path, "output='1e5'", "model.revision='007'")
    assert through_a_file(loaded, tmp_path) == loaded.job


def test_each_value_stands_with_its_origin_behind_it(tmp_path: Path):
    loaded = load(tmp_path, "optimizer.learning_rate=3e-5", "data.train=[a, {path: b, weight: 2}]")
    origins = {**loaded.origins, "strategy.zero": "planner: one process"}
    lines = [line.strip() for line in render(LoadedJob(loaded.job, origins, loaded.path)).splitlines()]
    assert f'task: "sft"  # {tmp_path}/job.yaml:1' in lines
    assert "learning_rate: 3e-05  # command line" in lines
    assert 'zero: "auto"  # planner: one process' in lines
    assert "seed: 0  # default" in lines
    assert '- path: "b"  # command line' in lines


def test_every_leaf_of_the_job_is_rendered_once(tmp_path: Path):
    loaded = load(tmp_path, data={"train": ["a", "b"], "eval": {"x": "c"}})
    leaves = [line for line in render(loaded).splitlines() if "  # " in line]
    assert len(leaves) == len(loaded.origins)


def test_two_loads_of_a_job_do_not_differ(tmp_path: Path):
    assert differences(load(tmp_path).job, load(tmp_path).job) == []


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("seed=1", "seed: 0 → 1"),
        ("optimizer.learning_rate=0.2", "optimizer.learning_rate: 0.1 → 0.2"),
        ("batch.rows=8", "batch.rows: 4 → 8"),
        ("data.sequence_length=64", "data.sequence_length: 256 → 64"),
        ("model.attention=eager", "model.attention: auto → eager"),
        ("data.train.fields={text: b}", "data.train.0.fields.text: None → b"),
        ("data.eval={a: {path: b}}", "data.eval.a.0.path: None → b"),
    ],
)
def test_what_makes_another_job_is_named_with_both_values(tmp_path: Path, override: str, difference: str):
    assert difference in differences(load(tmp_path).job, load(tmp_path, override).job)


def test_a_field_that_only_the_old_job_has_is_a_difference(tmp_path: Path):
    old = load(tmp_path, data={"eval": {"a": "x", "b": "y"}}).job
    assert "data.eval.b.0.path: y → None" in differences(old, load(tmp_path, data={"eval": {"a": "x"}}).job)


@pytest.mark.parametrize(
    "override",
    [
        "output=elsewhere", "duration={steps: 9}", "strategy.zero=3", "strategy.precision=bf16", "checkpoint.every=1",
        "tracking=wandb", "launch.processes=2", "deepspeed={wall_clock_breakdown: true}", "batch.micro=2",
        "data.cache=elsewhere", "data.processes=3", "data.eval_every=5", "preference.reference=live",
        "data.audit.words=9",
    ],
)  # fmt: skip
def test_a_run_goes_on_where_only_this_differs(tmp_path: Path, override: str):
    task = ["task=preference"] if override.startswith("preference.") else []
    job, changed = load(tmp_path, *task).job, load(tmp_path, *task, override).job
    assert changed != job
    assert differences(job, changed) == []


def load_generate(folder: Path, *overrides: str) -> LoadedJob:
    (folder / "job.yaml").write_text(yaml.safe_dump(generate_data(folder)), "utf-8")
    return load_job(folder / "job.yaml", overrides)


@pytest.mark.parametrize(
    "override",
    [
        "output=elsewhere", "strategy.precision=bf16", "strategy.tensor=2", "batch.rows=3", "batch.tokens=4096",
        "launch.processes=2", "generation.engine=zero", "data.cache=elsewhere", "checkpoint.mirror=elsewhere",
    ],
)  # fmt: skip
def test_completions_go_on_where_only_this_differs(tmp_path: Path, override: str):
    job, changed = load_generate(tmp_path).job, load_generate(tmp_path, override).job
    assert changed != job
    assert differences(job, changed) == []


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("seed=1", "seed: 0 → 1"),
        ("generation.temperature=0.7", "generation.temperature: 0.0 → 0.7"),
        ("data.prompts.template='{{ a }}'", "data.prompts.0.template: None → {{ a }}"),
        ("data.on_long_prompt=cut", "data.on_long_prompt: error → cut"),
    ],
)
def test_what_changes_completions_makes_another_job(tmp_path: Path, override: str, difference: str):
    assert differences(load_generate(tmp_path).job, load_generate(tmp_path, override).job) == [difference]


@pytest.mark.parametrize("sections", [(), ("data.prompts=[a, {path: b, template: '{{ c }}'}]", "generation.stop=x")])
def test_a_rendered_generate_job_reads_back_as_the_same_job(tmp_path: Path, sections: tuple[str, ...]):
    loaded = load_generate(tmp_path, *sections)
    assert through_a_file(loaded, tmp_path) == loaded.job


def test_a_training_run_and_completions_do_not_go_on_from_each_other(tmp_path: Path):
    training, generate = load(tmp_path).job, load_generate(tmp_path).job
    assert "task: sft → generate" in differences(training, generate)
    assert "task: generate → sft" in differences(generate, training)


def load_evaluate(folder: Path, *overrides: str) -> LoadedJob:
    return load_job(write_evaluate_job(folder / "job.yaml"), overrides)


@pytest.mark.parametrize(
    "override",
    [
        "output=elsewhere", "strategy.precision=bf16", "batch.rows=3", "launch.processes=2", "generation.engine=zero",
        "data.cache=elsewhere", "checkpoint.mirror=elsewhere",
    ],
)  # fmt: skip
def test_an_evaluation_goes_on_where_only_this_differs(tmp_path: Path, override: str):
    job, changed = load_evaluate(tmp_path).job, load_evaluate(tmp_path, override).job
    assert changed != job
    assert differences(job, changed) == []


@pytest.mark.parametrize("override", ["data.sequence_length=64", "generation.max_new_tokens=9", "retrieval={path: a}"])
def test_what_changes_a_rows_figures_makes_another_job(tmp_path: Path, override: str):
    assert differences(load_evaluate(tmp_path).job, load_evaluate(tmp_path, override).job)


def test_a_rendered_evaluate_job_reads_back_as_the_same_job(tmp_path: Path):
    loaded = load_evaluate(tmp_path, "retrieval={path: a}", "benchmarks={tasks: [a, b]}")
    assert through_a_file(loaded, tmp_path) == loaded.job


@pytest.mark.parametrize(
    ("family", "tries"),
    [
        (TrainingJob, test_a_run_goes_on_where_only_this_differs),
        (GenerateJob, test_completions_go_on_where_only_this_differs),
        (EvaluateJob, test_an_evaluation_goes_on_where_only_this_differs),
    ],
)
def test_every_free_key_is_tried_above(family: type[Job], tries: Any):
    assert [key for key in family.FREE if key not in str(tries.pytestmark)] == []
    assert family.FREE
