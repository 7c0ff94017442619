"""A job file to a job: of which class, where each value came from, what is refused, and the schema for editors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.config.schemas import conforms
from tests.making import generate_data, job_data, write_job
from velocity.config.generate import GenerateJob
from velocity.config.job import Job, LoadedJob
from velocity.config.load import TASKS, load_job, option_names, schema
from velocity.config.strategy import StrategyConfig
from velocity.config.training import TrainingJob
from velocity.errors import UserError

TEXT = """\
task: sft
model: runs/pretrain
output: runs/sft
data:
  train:
    - {path: a.jsonl, weight: 3}
    - path: b.jsonl
  sequence_length: 64
batch: {tokens: 128}
optimizer:
  learning_rate: 1e-5
duration: {epochs: 2}
strategy: auto
"""


def load(folder: Path, text: str = TEXT, *overrides: str) -> LoadedJob:
    (folder / "job.yaml").write_text(text)
    return load_job(folder / "job.yaml", overrides)


def problem(folder: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load(folder, text, *overrides)
    assert caught.value.exit_status == 2
    assert len(caught.value.problems) == 1
    return str(caught.value).replace(f"{folder}/", "").splitlines()


def test_a_job_file_becomes_a_typed_job(tmp_path: Path):
    job = load(tmp_path).job
    assert job.model.path == "runs/pretrain"
    assert job.optimizer.learning_rate == 1e-5
    assert [source.weight for source in job.data.train] == [3.0, 1.0]
    assert job.strategy == StrategyConfig()


def test_every_value_knows_the_line_the_command_line_or_the_default_that_it_came_from(tmp_path: Path):
    overrides = ("data.train.1.weight=2", "optimizer.learning_rate=3e-5", "tracking=tensorboard")
    origins = load(tmp_path, TEXT, *overrides).origins
    shown = {key: where.replace(f"{tmp_path}/", "") for key, where in origins.items()}
    # the lines are those of TEXT, from 1
    assert {key: where for key, where in shown.items() if where != "default"} == {
        "task": "job.yaml:1",
        "model.path": "job.yaml:2",
        "output": "job.yaml:3",
        "data.train.0.path": "job.yaml:6",
        "data.train.0.weight": "job.yaml:6",
        "data.train.1.path": "job.yaml:7",
        "data.train.1.weight": "command line",
        "data.sequence_length": "job.yaml:8",
        "batch.tokens": "job.yaml:9",
        "optimizer.learning_rate": "command line",
        "duration.epochs": "job.yaml:12",
        "tracking": "command line",
    }
    assert {shown[key] for key in ("optimizer.kind", "seed", "data.train.0.format", "strategy.zero")} == {"default"}


def test_the_origin_of_a_single_source_is_its_line(tmp_path: Path):
    text = yaml.safe_dump(job_data(tmp_path), sort_keys=False)
    line = text.splitlines().index(f"  train: {tmp_path}/train.jsonl") + 1
    assert load(tmp_path, text).origins["data.train.0.path"].endswith(f"job.yaml:{line}")


def test_an_unknown_key_is_refused_with_file_line_and_the_nearest_name(tmp_path: Path):
    assert problem(tmp_path, TEXT.replace("learning_rate", "learnign_rate")) == [
        "unknown key 'optimizer.learnign_rate'", "  where: job.yaml:11", "  fix:   did you mean 'learning_rate'?",
    ]  # fmt: skip
    assert problem(tmp_path, TEXT.replace("weight: 3", "wieght: 3")) == [
        "unknown key 'data.train.0.wieght'", "  where: job.yaml:6", "  fix:   did you mean 'weight'?",
    ]  # fmt: skip


def test_a_key_that_stands_twice_is_refused_not_overridden_silently(tmp_path: Path):
    assert problem(tmp_path, TEXT + "task: pretrain\n")[:2] == ["the key 'task' stands twice", "  where: job.yaml:14"]


def test_overrides_are_applied_in_order_and_last_wins(tmp_path: Path):
    assert load(tmp_path, TEXT, "seed=1", "seed=2").job.seed == 2


def test_the_attention_of_a_model_that_is_a_word_can_be_overridden(tmp_path: Path):
    model = load(tmp_path, TEXT, "model.attention=eager").job.model
    assert (model.path, model.attention) == ("runs/pretrain", "eager")


def test_the_job_of_the_test_suite_is_a_job(tmp_path: Path):
    assert load_job(write_job(tmp_path / "job.yaml")).job.batch.rows == 4


def test_option_names_reach_into_lists_unions_and_named_sets():
    names = option_names()
    assert names == sorted(set(names))
    expected = {"task", "data.train.path", "data.eval.weight", "optimizer.betas", "optimizer.momentum", "deepspeed"}
    assert expected | {"data.prompts.path", "generation.stop", "strategy.offload.parameters"} <= set(names)
    sections = {"data", "data.train", "data.prompts", "optimizer", "strategy", "strategy.offload"}
    assert not sections & set(names), "a section is no option"


def generating(**sections: Any) -> str:
    """A generate job's file."""
    return yaml.safe_dump({**generate_data(Path("runs")), **sections})


@pytest.mark.parametrize(("task", "kind"), TASKS.items())
def test_a_task_has_its_class(tmp_path: Path, task: str, kind: type[Job]):
    others = {"generate": generating(), "evaluate": "{task: evaluate, model: m, output: o, data: {eval: {a: a.jsonl}}}"}
    training = TEXT.replace("task: sft", f"task: {task}").replace("tokens: 128", "rows: 2")
    job = load(tmp_path, others.get(task, training)).job
    assert (type(job), job.task) == (kind, task)


def test_a_job_without_a_task_or_with_one_that_is_none_is_told_all_of_them(tmp_path: Path):
    fix = "  fix:   task: one of pretrain, sft, preference, generate, evaluate"
    assert problem(tmp_path, TEXT.replace("task: sft", "seed: 0")) == ["'task' is missing", "  where: job.yaml:1", fix]
    assert problem(tmp_path, "seed: 0\n" + TEXT.replace("task: sft", "task: finetune")) == [
        "task: 'finetune' is none of them", "  where: job.yaml:2", fix,
    ]  # fmt: skip
    assert problem(tmp_path, TEXT, "task=[sft]") == ["task: ['sft'] is none of them", "  where: command line", fix]


def test_a_key_of_another_task_is_refused_by_its_line(tmp_path: Path):
    assert problem(tmp_path, TEXT + "generation: {}\n")[:2] == ["unknown key 'generation'", "  where: job.yaml:14"]
    text = generating(duration={"steps": 1})
    line = text.splitlines().index("duration:") + 1
    assert problem(tmp_path, text)[:2] == ["unknown key 'duration'", f"  where: job.yaml:{line}"]


def test_the_schema_takes_the_jobs_of_every_task_and_none_with_a_key_of_another():
    whole = schema()
    assert json.loads(json.dumps(whole)) == whole
    training, generate = yaml.safe_load(TEXT.replace("1e-5", "0.00001")), yaml.safe_load(generating())
    TrainingJob.model_validate(training)
    GenerateJob.model_validate(generate)
    for job in (training, generate):
        assert conforms(job, whole, whole["$defs"])
    for wrong in ({**training, "generation": {}}, {**generate, "duration": {"steps": 1}}, {**training, "task": "all"}):
        assert not conforms(wrong, whole, whole["$defs"])


OF_PASSWORD = "the value of the environment variable MY_PASSWORD"


@pytest.mark.parametrize(
    ("override", "key", "what"),
    [
        ("data.train=https://h/a.jsonl?X-Amz-Signature=f00d", "data.train.0.path", "credentials in an address"),
        ("model=runs/not-to-be-seen-7", "model.path", OF_PASSWORD),
        ("data.eval={not-to-be-seen-7: a}", "data.eval.***.0.path", OF_PASSWORD),
        ("model.revision=hf_" + "aB1" * 12, "model.revision", "a token"),
        ("deepspeed.comet.api_key=0123abcd", "deepspeed.comet.api_key", "what its name calls a secret"),
        ("adapter={targets: [q_proj, not-to-be-seen-7]}", "adapter.targets", OF_PASSWORD),
    ],
)
def test_a_job_that_holds_a_secret_is_refused_without_telling_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, key: str, what: str
):
    monkeypatch.setenv("MY_PASSWORD", "not-to-be-seen-7")
    said = problem(tmp_path, TEXT, override)
    assert said[0] == f"{key} holds {what}"
    assert said[1] == "  where: command line" and "environment" in said[2]


def test_a_secret_in_a_file_is_placed(tmp_path: Path):
    said = problem(tmp_path, TEXT.replace("path: b.jsonl", "path: https://h/b.jsonl?sig=f00d"))
    assert said[1] == "  where: job.yaml:7"


@pytest.mark.parametrize(
    "override",
    ["data.train=https://h/a.jsonl?version=3", "deepspeed.comet.api_key=short", "data.train.0.fields={text: api_key}"],
)
def test_a_job_without_secrets_is_not_refused(tmp_path: Path, override: str):
    assert load(tmp_path, TEXT, override)
