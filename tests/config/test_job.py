"""A job file to a job: where each value came from, what is refused, and the schema that editors use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.making import job_data, write_job
from velocity.config.job import DECIDED, Job, LoadedJob, flatten, load_job, option_names
from velocity.config.strategy import StrategyConfig
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


def test_a_batch_that_does_not_hold_whole_rows_is_refused_with_those_that_do(tmp_path: Path):
    # 64 * 2 = 128 <= 150 < 192 = 64 * 3
    assert problem(tmp_path, TEXT.replace("tokens: 128", "tokens: 150")) == [
        "batch.tokens=150 is not a multiple of data.sequence_length=64",
        "  where: job.yaml:9",
        "  fix:   use 128 or 192",
    ]
    assert problem(tmp_path, TEXT.replace("tokens: 128", "tokens: 5"))[2] == "  fix:   use 64 or 128"


def test_any_batch_is_taken_where_rows_are_not_packed(tmp_path: Path):
    text = TEXT.replace("tokens: 128", "tokens: 150")
    assert load(tmp_path, text, "data.packing=false").job.batch.tokens == 150


def test_a_batch_of_less_than_one_sequence_is_refused(tmp_path: Path):
    assert problem(tmp_path, TEXT, "data.packing=false", "batch.tokens=63") == [
        "batch.tokens=63 is less than data.sequence_length=64", "  where: command line", "  fix:   use 64 or 128",
    ]  # fmt: skip


@pytest.mark.parametrize("name", DECIDED)
def test_a_deepspeed_setting_that_velocity_decides_is_refused_by_name(tmp_path: Path, name: str):
    section, _, leaf = name.partition(".")
    raw: Any = {section: {leaf: 1} if leaf else {"enabled": True}}
    lines = problem(tmp_path, TEXT + f"deepspeed:\n  {json.dumps(raw)[1:-1]}\n")
    assert lines == [
        f"deepspeed.{name} is decided by Velocity", "  where: job.yaml:15", f"  fix:   set {DECIDED[name]} instead",
    ]  # fmt: skip


def test_every_decided_setting_points_to_an_option_that_exists():
    names = option_names()
    for key in DECIDED.values():
        assert any(name == key or name.startswith(f"{key}.") for name in names), key


def test_a_deepspeed_setting_that_velocity_leaves_is_passed_on(tmp_path: Path):
    raw = {"zero_optimization": {"overlap_comm": False}, "wall_clock_breakdown": True}
    assert load(tmp_path, TEXT + f"deepspeed: {json.dumps(raw)}\n").job.deepspeed == raw


def test_overrides_are_applied_in_order_and_last_wins(tmp_path: Path):
    assert load(tmp_path, TEXT, "seed=1", "seed=2").job.seed == 2


def test_the_attention_of_a_model_that_is_a_word_can_be_overridden(tmp_path: Path):
    model = load(tmp_path, TEXT, "model.attention=eager").job.model
    assert (model.path, model.attention) == ("runs/pretrain", "eager")


def test_the_job_of_the_test_suite_is_a_job(tmp_path: Path):
    assert load_job(write_job(tmp_path / "job.yaml")).job.batch.rows == 4


def test_flatten_names_each_leaf_by_its_path():
    nested = {"a": {"b": 1, "c": {}}, "d": [{"e": 2}, {"e": 3}], "f": (0.9, 0.95), "g": []}
    assert flatten(nested) == {"a.b": 1, "a.c": {}, "d.0.e": 2, "d.1.e": 3, "f": (0.9, 0.95), "g": []}


def test_option_names_reach_into_lists_unions_and_named_sets():
    names = option_names()
    assert names == sorted(set(names))
    expected = {"task", "data.train.path", "data.eval.weight", "optimizer.betas", "optimizer.momentum", "deepspeed"}
    assert expected <= set(names)
    assert not {"data", "data.train", "optimizer", "strategy"} & set(names), "a section is no option"


def conforms(value: Any, schema: dict[str, Any], defs: dict[str, Any]) -> bool:
    """The part of JSON Schema 2020-12 that a job's schema uses; a keyword it does not know fails the test."""
    schema = {**schema}
    for note in ("title", "description", "default", "$defs"):
        schema.pop(note, None)
    checks = {
        "$ref": lambda ref: conforms(value, defs[ref.removeprefix("#/$defs/")], defs),
        "anyOf": lambda members: any(conforms(value, member, defs) for member in members),
        "oneOf": lambda members: sum(conforms(value, member, defs) for member in members) == 1,
        "const": lambda wanted: value == wanted,
        "enum": lambda words: value in words,
        "type": lambda name: is_json_type(value, name),
        "required": lambda names: not isinstance(value, dict) or all(name in value for name in names),
        "items": lambda item: not isinstance(value, list) or all(conforms(v, item, defs) for v in value),
        "prefixItems": lambda items: all(conforms(v, item, defs) for v, item in zip(value, items, strict=False)),
        "minItems": lambda least: not isinstance(value, list) or len(value) >= least,
        "maxItems": lambda most: not isinstance(value, list) or len(value) <= most,
        "minLength": lambda least: not isinstance(value, str) or len(value) >= least,
        "minimum": lambda least: not isinstance(value, (int, float)) or value >= least,
        "maximum": lambda most: not isinstance(value, (int, float)) or value <= most,
        "exclusiveMinimum": lambda least: not isinstance(value, (int, float)) or value > least,
        "exclusiveMaximum": lambda most: not isinstance(value, (int, float)) or value < most,
        "properties": lambda fields: all(
            conforms(item, fields[name], defs) for name, item in value.items() if name in fields
        ),
        "additionalProperties": lambda rule: all(
            rule if isinstance(rule, bool) else conforms(item, rule, defs)
            for name, item in value.items()
            if name not in schema.get("properties", {})
        ),
    }
    # the type first: the others take it for granted
    return all(checks[name](schema[name]) for name in sorted(schema, key=lambda name: name != "type"))


def is_json_type(value: Any, name: str) -> bool:
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "integer": int}
    if isinstance(value, bool):
        return name == "boolean"
    return isinstance(value, (int, float)) if name == "number" else isinstance(value, kinds[name])


def test_the_schema_accepts_a_job_file_with_all_its_short_forms():
    schema = Job.model_json_schema()
    assert json.loads(json.dumps(schema)) == schema
    job = yaml.safe_load(TEXT.replace("1e-5", "0.00001"))
    data = {"train": ["a", {"path": "b"}], "eval": {"seen": "c", "unseen": ["d", {"path": "e"}]}, "packing": False}
    data["sequence_length"] = 64
    short = {"data": data, "optimizer": {"kind": "sgd", "learning_rate": 0.1}, "tracking": "tensorboard"}
    longer = {
        "model": {"path": "m"},
        "strategy": {"zero": 3},
        "tracking": [],
        "data": {"train": {"path": "a"}, "sequence_length": 8},
    }
    for changes in ({}, short, longer):
        Job.model_validate({**job, **changes})
        assert conforms({**job, **changes}, schema, schema["$defs"]), changes


@pytest.mark.parametrize(
    "changes",
    [
        {"tsk": "sft"},
        {"task": "train"},
        {"model": 3},
        {"strategy": "fast"},
        {"batch": {"rows": 0}},
        {"tracking": ["tensorbord"]},
        {"optimizer": {"kind": "sgd", "learning_rate": 0.1, "betas": [0.9, 0.9]}},
        {"data": {"train": {"pth": "a"}}},
        {"data": {"train": "a", "packing": "no"}},
    ],
)
def test_the_schema_refuses_what_the_job_refuses(changes: dict[str, Any]):
    schema = Job.model_json_schema()
    job = yaml.safe_load(TEXT.replace("1e-5", "0.00001"))
    assert not conforms({**job, **changes}, schema, schema["$defs"])


def test_every_key_of_the_schema_that_is_no_plain_number_says_what_it_is():
    section = Job.model_json_schema()["$defs"]
    for name in ("SourceConfig", "DataConfig", "ModelConfig"):
        silent = [key for key, value in section[name]["properties"].items() if "description" not in value]
        assert not silent, f"{name}: {silent}"
