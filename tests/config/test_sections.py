"""The limits of each section, and the short forms that stand for a whole one."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from velocity.config.sections import (
    AdamWConfig,
    AnyOptimizer,
    BatchConfig,
    CheckpointConfig,
    DataConfig,
    DurationConfig,
    OptimizerConfig,
    SGDConfig,
    SourceConfig,
    one_to_list,
    path_to_mapping,
)

OPTIMIZER: TypeAdapter[AnyOptimizer] = TypeAdapter(OptimizerConfig)


def test_a_source_may_be_a_path_a_mapping_or_a_list_of_both():
    one = SourceConfig(path="a.jsonl")
    two = SourceConfig(path="b.jsonl", weight=2, fields={"text": "body"})
    for given, sources in [
        ("a.jsonl", (one,)),
        ({"path": "a.jsonl"}, (one,)),
        (["a.jsonl", two.model_dump()], (one, two)),
    ]:
        assert DataConfig.model_validate({"train": given}).train == sources


def test_an_evaluation_set_cannot_take_the_training_sets_name():
    with pytest.raises(ValidationError, match="cannot be named train"):
        DataConfig.model_validate({"train": "a", "eval": {"train": "b"}})


def test_one_evaluation_source_is_the_set_named_eval_and_a_mapping_names_several():
    one = SourceConfig(path="a.jsonl")
    for given, named in [
        ("a.jsonl", {"eval": (one,)}),
        ({"path": "a.jsonl"}, {"eval": (one,)}),
        (["a.jsonl"], {"eval": (one,)}),
        ({"unseen": "a.jsonl", "general": ["a.jsonl"]}, {"unseen": (one,), "general": (one,)}),
        ({}, {}),
    ]:
        assert DataConfig.model_validate({"train": "t", "eval": given}).eval == named


@pytest.mark.parametrize("mirror", [None, "a/folder", "~/a@b", "s3://bucket", "gs://bucket/run", "az://container/run"])
def test_a_mirror_is_a_folder_or_an_object_store(mirror: str | None):
    assert CheckpointConfig(mirror=mirror).mirror == mirror


@pytest.mark.parametrize("mirror", ["https://host/run", "s3://", "file:///a", "s3://bucket/run?sig=abc", "s3:///run"])
def test_another_address_is_no_mirror(mirror: str):
    with pytest.raises(ValidationError, match="a mirror is a folder, or an address such as s3://bucket/run"):
        CheckpointConfig(mirror=mirror)


def test_a_mirrors_address_holds_no_secret():
    with pytest.raises(ValidationError, match="must not hold a user or password"):
        CheckpointConfig(mirror="s3://key:secret@bucket/run")


def test_short_forms_leave_what_is_long_already_as_it_is():
    assert path_to_mapping({"path": "a"}) == {"path": "a"} == path_to_mapping("a")
    assert one_to_list(["a"]) == ["a"] == one_to_list("a")
    assert one_to_list({"path": "a"}) == [{"path": "a"}]


@pytest.mark.parametrize("size", [{}, {"tokens": 128, "rows": 1}])
def test_the_global_batch_is_given_once(size: dict[str, int]):
    with pytest.raises(ValidationError, match="give the global batch once"):
        BatchConfig.model_validate(size)


@pytest.mark.parametrize("end", [{}, {"epochs": 1, "steps": 1}, {"steps": 1, "tokens": 1}])
def test_training_has_one_end(end: dict[str, int]):
    with pytest.raises(ValidationError, match="give one end"):
        DurationConfig.model_validate(end)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("45s", 45), ("90m", 5400), ("1h30m", 5400), ("1.5h", 5400), ("12h", 43200), ("2d", 172800), ("1d12h", 129600),
     (90, 90), (0.5, 0.5), (None, None)],
)  # fmt: skip
def test_the_time_of_an_attempt_is_in_days_hours_minutes_and_seconds_and_beside_the_one_end(
    given: Any, seconds: float | None
):
    duration = DurationConfig(steps=3, wall_clock=given)
    assert duration.wall_clock_seconds == seconds
    assert duration.wall_clock == given, "the resolved job says what the user wrote"
    assert duration.end == DurationConfig(steps=3).end
    with pytest.raises(ValidationError, match="give one end"):
        DurationConfig(wall_clock=given)


@pytest.mark.parametrize("given", ["", "90", "h", "30m1h", "1w", "-5m", "0s", "1:30", 0, -1, True, [60], float("inf")])
def test_what_is_no_time_is_refused_and_what_is_one_is_named(given: Any):
    with pytest.raises(ValidationError, match=r"days, hours, minutes, seconds as in 2d, 12h, 1h30m, 45s, or a number"):
        DurationConfig(steps=3, wall_clock=given)


def test_an_optimizer_is_chosen_by_its_kind_and_is_adamw_without_one():
    assert OPTIMIZER.validate_python({"learning_rate": 1}) == AdamWConfig(learning_rate=1)
    assert OPTIMIZER.validate_python({"kind": "sgd", "learning_rate": 1}) == SGDConfig(learning_rate=1)
    with pytest.raises(ValidationError, match="kind: adamw, adamw_8bit, lion"):
        OPTIMIZER.validate_python({"kind": "adam", "learning_rate": 1})


def test_an_optimizer_has_no_field_of_another_kind():
    with pytest.raises(ValidationError, match=r"sgd\.betas"):
        OPTIMIZER.validate_python({"kind": "sgd", "learning_rate": 1, "betas": [0.9, 0.99]})
    with pytest.raises(ValidationError, match=r"adamw\.momentum"):
        OPTIMIZER.validate_python({"learning_rate": 1, "momentum": 0.9})


@pytest.mark.parametrize(
    ("section", "values"),
    [
        (SourceConfig, {"path": "a", "weight": 0}),
        (SourceConfig, {"path": "a", "format": "csv"}),
        (DataConfig, {"train": []}),
        (DataConfig, {"train": "a", "eval": {"a": []}}),
        (DataConfig, {"train": "a", "sequence_length": 7}),
        (DataConfig, {"train": "a", "on_bad_record": "ignore"}),
        (DataConfig, {"train": "a", "on_long_chat": "truncate"}),
        (DataConfig, {"train": "a", "processes": 0}),
        (DataConfig, {"train": "a", "eval_every": 0}),
        (BatchConfig, {"rows": 0}),
        (BatchConfig, {"rows": 2, "micro": 0}),
        (AdamWConfig, {"learning_rate": 0}),
        (AdamWConfig, {"learning_rate": 1, "warmup": -1}),
        (AdamWConfig, {"learning_rate": 1, "decay": 0}),
        (AdamWConfig, {"learning_rate": 1, "decay": 1.1}),
        (AdamWConfig, {"learning_rate": 1, "final": 2}),
        (AdamWConfig, {"learning_rate": 1, "gradient_clipping": -1}),
        (AdamWConfig, {"learning_rate": 1, "betas": [0.9]}),
        (AdamWConfig, {"learning_rate": 1, "betas": [0.9, 1.0]}),
        (AdamWConfig, {"learning_rate": 1, "schedule": "cosin"}),
        (SGDConfig, {"learning_rate": 1, "momentum": 1}),
        (DurationConfig, {"epochs": 0}),
        (DurationConfig, {"steps": 1.5}),
        (CheckpointConfig, {"every": 0}),
        (CheckpointConfig, {"keep": 0}),
    ],
)
def test_a_value_beyond_its_limit_is_refused(section: Any, values: dict[str, Any]):
    with pytest.raises(ValidationError) as caught:
        section.model_validate(values)
    named = str(caught.value.errors()[0]["loc"][0])
    assert named in values, f"the error is about {named}"


def test_a_section_cannot_be_changed_once_it_is_made():
    with pytest.raises(ValidationError, match="frozen"):
        BatchConfig(rows=1).rows = 2  # type: ignore[misc]


@pytest.mark.parametrize("path", ["https://me:word@host/a.jsonl", "https://token@host/a.jsonl"])
def test_an_address_with_a_secret_is_refused_because_job_files_are_copied(path: str):
    with pytest.raises(ValidationError, match="must not hold a user or password"):
        SourceConfig(path=path)
    assert SourceConfig(path="s3://bucket/user@example.org/a.jsonl").path.endswith("a.jsonl")
