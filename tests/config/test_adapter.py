"""Which few parameters are trained: all of the model's unless an adapter is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.config.schemas import conforms
from tests.config.test_objective import line_of
from tests.making import job_data, write_job
from velocity.config.adapter import AdapterConfig
from velocity.config.job import LoadedJob
from velocity.config.load import load_job, read_resolved
from velocity.config.resolved import differences, render
from velocity.config.training import TrainingJob
from velocity.errors import UserError


def load(folder: Path, *overrides: str, **sections: Any) -> LoadedJob:
    return load_job(write_job(folder / "job.yaml", **sections), overrides)


def problem(folder: Path, *overrides: str, **sections: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        load(folder, *overrides, **sections)
    assert caught.value.exit_status == 2
    return str(caught.value).replace(f"{folder}/", "").splitlines()


def test_without_an_adapter_all_parameters_are_trained(tmp_path: Path):
    assert load(tmp_path).job.adapter is None


@pytest.mark.parametrize("task", ["pretrain", "sft", "preference"])
def test_an_adapter_goes_with_every_task_and_is_lora_of_rank_16_on_all_linear_layers(tmp_path: Path, task: str):
    adapter = load(tmp_path, task=task, adapter={}).job.adapter
    assert adapter is not None
    assert adapter.model_dump() == {
        "kind": "lora", "rank": 16, "alpha": 32, "dropout": 0.0, "targets": "all-linear", "bits": None,
    }  # fmt: skip


def test_an_adapter_can_be_asked_for_on_the_command_line(tmp_path: Path):
    loaded = load(tmp_path, "adapter.rank=8")
    assert loaded.job.adapter == AdapterConfig(rank=8)
    assert (loaded.origins["adapter.rank"], loaded.origins["adapter.kind"]) == ("command line", "default")


@pytest.mark.parametrize(
    ("written", "targets"),
    [("all-linear", "all-linear"), ("q_proj", ("q_proj",)), (["q_proj", "v_proj"], ("q_proj", "v_proj"))],
)
def test_targets_are_a_word_for_all_one_layer_or_a_list(tmp_path: Path, written: Any, targets: Any):
    loaded = load(tmp_path, adapter={"targets": written})
    assert loaded.job.adapter is not None and loaded.job.adapter.targets == targets
    (tmp_path / "resolved.yaml").write_text(render(loaded))
    assert read_resolved(tmp_path / "resolved.yaml") == loaded.job


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_weights_are_refused_under_stage_3(tmp_path: Path, bits: int):
    assert problem(tmp_path, adapter={"bits": bits}, strategy={"zero": 3}) == [
        "strategy.zero=3 does not go with adapter.bits: quantised weights are not split",
        f"  where: {line_of(tmp_path, 'zero:')}",
        "  fix:   use strategy.zero: 2",
    ]
    for zero in ("auto", 0, 1, 2):
        assert load(tmp_path, adapter={"bits": bits}, strategy={"zero": zero}).job.strategy.zero == zero
    assert load(tmp_path, adapter={}, strategy={"zero": 3}).job.strategy.zero == 3


@pytest.mark.parametrize(
    "values",
    [{"kind": "loha"}, {"rank": 0}, {"alpha": 0}, {"dropout": -0.1}, {"dropout": 1}, {"bits": 5}, {"bits": 16},
     {"targets": []}, {"targets": 3}],
)  # fmt: skip
def test_a_value_beyond_its_limit_is_refused(tmp_path: Path, values: dict[str, Any]):
    assert problem(tmp_path, adapter=values)[0].startswith(f"adapter.{[*values][0]}: ")


def test_an_unknown_setting_is_refused_with_the_nearest_name(tmp_path: Path):
    assert problem(tmp_path, adapter={"target": "q_proj"}) == [
        "unknown key 'adapter.target'",
        f"  where: {line_of(tmp_path, 'target:')}",
        "  fix:   did you mean 'targets'?",
    ]


@pytest.mark.parametrize(
    "values", [{"rank": 8}, {"kind": "dora"}, {"targets": "q_proj"}, {"bits": 4}, {"dropout": 0.1}]
)
def test_a_run_does_not_go_on_with_another_adapter_or_without_one(tmp_path: Path, values: dict[str, Any]):
    plain, other = load(tmp_path, adapter={}).job, load(tmp_path, adapter=values).job
    name = [*values][0]
    assert [line.partition(":")[0] for line in differences(plain, other)] == [f"adapter.{name}"]
    assert differences(load(tmp_path).job, other)[0].startswith("adapter.kind: None → ")
    assert differences(other, load(tmp_path).job)


@pytest.mark.parametrize("section", [{}, {"targets": "q_proj"}, {"targets": ["q_proj", "v_proj"]}, {"bits": 4}, None])
def test_the_schema_accepts_what_the_job_accepts(tmp_path: Path, section: Any):
    schema = TrainingJob.model_json_schema()
    job = {**job_data(tmp_path), "adapter": section}
    TrainingJob.model_validate(job)
    assert conforms(job, schema, schema["$defs"])


@pytest.mark.parametrize("section", [{"bits": 5}, {"targets": 3}, {"kind": "loha"}, {"rank": 0}, "lora"])
def test_the_schema_refuses_what_the_job_refuses(tmp_path: Path, section: Any):
    schema = TrainingJob.model_json_schema()
    assert not conforms({**job_data(tmp_path), "adapter": section}, schema, schema["$defs"])
