"""A training job: what of it must go together, what is left to DeepSpeed, and the schema that editors use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.config.schemas import conforms
from tests.config.test_load import TEXT, load, problem
from velocity.config.load import option_names
from velocity.config.training import DECIDED, TrainingJob


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


def test_the_schema_accepts_a_job_file_with_all_its_short_forms():
    schema = TrainingJob.model_json_schema()
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
        TrainingJob.model_validate({**job, **changes})
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
    schema = TrainingJob.model_json_schema()
    job = yaml.safe_load(TEXT.replace("1e-5", "0.00001"))
    assert not conforms({**job, **changes}, schema, schema["$defs"])


def test_every_key_of_the_schema_that_is_no_plain_number_says_what_it_is():
    section = TrainingJob.model_json_schema()["$defs"]
    for name in ("SourceConfig", "DataConfig", "ModelConfig"):
        silent = [key for key, value in section[name]["properties"].items() if "description" not in value]
        assert not silent, f"{name}: {silent}"
