"""What a preference job is trained towards: DPO unless another kind is named, and no setting of another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.config.schemas import conforms
from tests.making import job_data, write_job
from velocity.config.job import LoadedJob
from velocity.config.load import load_job, read_resolved
from velocity.config.objective import (
    KINDS,
    CPOConfig,
    DPOConfig,
    KTOConfig,
    ORPOConfig,
    SimPOConfig,
)
from velocity.config.resolved import differences, render
from velocity.config.training import TrainingJob
from velocity.errors import UserError

CONFIGS = {"dpo": DPOConfig, "orpo": ORPOConfig, "simpo": SimPOConfig, "cpo": CPOConfig, "kto": KTOConfig}
WITH_REFERENCE = ("dpo", "kto")


def load(folder: Path, *overrides: str, **sections: Any) -> LoadedJob:
    return load_job(write_job(folder / "job.yaml", **{"task": "preference", **sections}), overrides)


def problem(folder: Path, *overrides: str, **sections: Any) -> list[str]:
    """The one message that these sections are refused with."""
    with pytest.raises(UserError) as caught:
        load(folder, *overrides, **sections)
    assert caught.value.exit_status == 2
    return str(caught.value).replace(f"{folder}/", "").splitlines()


def line_of(folder: Path, text: str) -> str:
    """Where the job file has a line that begins so."""
    lines = (folder / "job.yaml").read_text().splitlines()
    return f"job.yaml:{next(i for i, line in enumerate(lines, 1) if line.strip().startswith(text))}"


@pytest.mark.parametrize("section", ["left out", None, {}, {"kind": "dpo"}])
def test_a_preference_job_is_dpo_unless_it_names_another_kind(tmp_path: Path, section: Any):
    made = load(tmp_path) if section == "left out" else load_job(_written(tmp_path, section))
    assert made.job.preference == DPOConfig()
    assert made.job.preference.model_dump() == {
        "kind": "dpo", "beta": 0.1, "loss": "sigmoid", "label_smoothing": 0.0, "sft_weight": 0.0, "reference": "cached",
    }  # fmt: skip


def _written(folder: Path, section: Any) -> Path:
    """A job file with `preference:` as it stands, empty too."""
    job = {**job_data(folder), "task": "preference", "preference": section}
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    return folder / "job.yaml"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_class_of_its_own_and_survives_the_run_folder(tmp_path: Path, kind: str):
    loaded = load(tmp_path, preference={"kind": kind, "beta": 0.3})
    assert type(loaded.job.preference) is CONFIGS[kind]
    (tmp_path / "resolved.yaml").write_text(render(loaded))
    assert read_resolved(tmp_path / "resolved.yaml") == loaded.job


def test_the_weights_and_margins_are_those_of_the_papers_unless_they_are_set(tmp_path: Path):
    dumps = {kind: config().model_dump(exclude={"kind", "reference"}) for kind, config in CONFIGS.items()}
    assert dumps == {
        "dpo": {"beta": 0.1, "loss": "sigmoid", "label_smoothing": 0.0, "sft_weight": 0.0},
        "orpo": {"beta": 0.1},
        "simpo": {"beta": 2.0, "gamma": 1.0},
        "cpo": {"beta": 0.1, "sft_weight": 1.0},
        "kto": {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
    }


def test_a_value_that_no_section_has_comes_from_the_default_and_an_override_from_the_command_line(tmp_path: Path):
    assert load(tmp_path).origins["preference.beta"] == "default"
    loaded = load(tmp_path, "preference.beta=0.2")
    assert loaded.job.preference == DPOConfig(beta=0.2)
    assert loaded.origins["preference.beta"] == "command line"
    assert load(tmp_path, "preference.kind=kto").job.preference == KTOConfig()


@pytest.mark.parametrize("loss", ["hinge", "ipo"])
def test_a_loss_that_knows_no_wrong_pairs_is_refused_with_label_smoothing(tmp_path: Path, loss: str):
    assert problem(tmp_path, preference={"loss": loss, "label_smoothing": 0.1}) == [
        f"preference: label_smoothing does not go with loss: {loss}",
        f"  where: {line_of(tmp_path, 'preference:')}",
        "  fix:   use loss: sigmoid or robust",
    ]


def test_robust_dpo_is_refused_without_the_share_of_wrong_pairs(tmp_path: Path):
    assert problem(tmp_path, preference={"loss": "robust"}) == [
        "preference: loss: robust needs the share of swapped pairs",
        f"  where: {line_of(tmp_path, 'preference:')}",
        "  fix:   set label_smoothing, e.g. 0.1",
    ]
    assert load(tmp_path, preference={"loss": "robust", "label_smoothing": 0.1}).job.preference is not None


def test_an_unknown_kind_is_refused_with_those_there_are(tmp_path: Path):
    assert problem(tmp_path, preference={"kind": "ppo"}) == [
        "preference: unknown objective",
        f"  where: {line_of(tmp_path, 'preference:')}",
        "  fix:   kind is one of dpo, orpo, simpo, cpo, kto",
    ]
    assert problem(tmp_path, preference="dpo")[0] == "preference: unknown objective (it is 'dpo')"


def test_a_setting_of_another_kind_is_refused_with_those_of_this_one(tmp_path: Path):
    assert problem(tmp_path, preference={"kind": "orpo", "reference": "live"}) == [
        "unknown key 'preference.reference'",
        f"  where: {line_of(tmp_path, 'reference:')}",
        "  fix:   known here: beta, kind",
    ]
    assert problem(tmp_path, preference={"betta": 0.1})[2] == "  fix:   did you mean 'beta'?"


@pytest.mark.parametrize("task", ["pretrain", "sft"])
def test_an_objective_is_refused_with_another_task(tmp_path: Path, task: str):
    assert problem(tmp_path, task=task, preference={"kind": "dpo"}) == [
        f"preference does not go with task: {task}",
        f"  where: {line_of(tmp_path, 'preference:')}",
        "  fix:   use task: preference",
    ]
    assert load(tmp_path, task=task).job.preference is None


def test_a_batch_in_tokens_is_refused_for_pairs(tmp_path: Path):
    assert problem(tmp_path, batch={"tokens": 512}) == [
        "batch.tokens does not go with task: preference",
        f"  where: {line_of(tmp_path, 'tokens:')}",
        "  fix:   count pairs, e.g. batch: {rows: 32}",
    ]


def test_a_duration_in_tokens_is_refused_for_pairs(tmp_path: Path):
    assert problem(tmp_path, duration={"tokens": 512}) == [
        "duration.tokens does not go with task: preference",
        f"  where: {line_of(tmp_path, 'tokens:')}",
        "  fix:   use epochs or steps",
    ]


@pytest.mark.parametrize(
    "values",
    [{"beta": 0}, {"label_smoothing": 0.5}, {"label_smoothing": -0.1}, {"sft_weight": -1}, {"loss": "log"},
     {"reference": "none"}, {"kind": "simpo", "gamma": -1}, {"kind": "cpo", "sft_weight": -1},
     {"kind": "kto", "desirable_weight": 0}, {"kind": "kto", "undesirable_weight": 0}],
)  # fmt: skip
def test_a_value_beyond_its_limit_is_refused(tmp_path: Path, values: dict[str, Any]):
    assert problem(tmp_path, preference=values)[0].startswith(f"preference.{[*values][-1]}: ")


@pytest.mark.parametrize("kind", KINDS)
def test_only_objectives_with_a_reference_say_where_it_comes_from(tmp_path: Path, kind: str):
    section = {"kind": kind, **({"reference": "live"} if kind in WITH_REFERENCE else {})}
    assert load(tmp_path, preference=section).job.reference == ("live" if kind in WITH_REFERENCE else None)
    assert load(tmp_path, preference={"kind": kind}).job.reference == ("cached" if kind in WITH_REFERENCE else None)
    assert load(tmp_path, task="sft").job.reference is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_holds_both_sequences_of_a_pair_and_the_one_of_a_single_answer(tmp_path: Path, kind: str):
    sequences = 1 if kind == "kto" else 2
    found = load(tmp_path, preference={"kind": kind}, data={"sequence_length": 64}).job
    assert found.row_tokens == 64 * sequences
    assert load(tmp_path, task="sft", data={"sequence_length": 64}).job.row_tokens == 64


@pytest.mark.parametrize("kind", WITH_REFERENCE)
def test_a_run_goes_on_with_a_reference_from_elsewhere_and_not_with_another_beta(tmp_path: Path, kind: str):
    before = load(tmp_path, preference={"kind": kind}).job
    assert differences(before, load(tmp_path, preference={"kind": kind, "reference": "live"}).job) == []
    changed = load(tmp_path, preference={"kind": kind, "beta": 0.2}).job
    assert differences(before, changed) == ["preference.beta: 0.1 → 0.2"]


def test_a_run_does_not_go_on_with_another_objective(tmp_path: Path):
    before, after = load(tmp_path).job, load(tmp_path, preference={"kind": "orpo"}).job
    assert differences(before, after)[0] == "preference.kind: dpo → orpo"


def test_every_kind_is_tried_above():
    assert set(KINDS) == set(CONFIGS)


@pytest.mark.parametrize("section", [{}, {"beta": 0.2}, {"loss": "ipo"}, *({"kind": kind} for kind in KINDS)])
def test_the_schema_accepts_what_the_job_accepts(tmp_path: Path, section: dict[str, Any]):
    schema = TrainingJob.model_json_schema()
    job = {**job_data(tmp_path), "task": "preference", "preference": section}
    assert TrainingJob.model_validate(job).preference is not None
    assert conforms(job, schema, schema["$defs"])


@pytest.mark.parametrize("section", [{"kind": "ppo"}, {"kind": "orpo", "gamma": 1}, {"loss": "log"}, "dpo"])
def test_the_schema_refuses_what_the_job_refuses(tmp_path: Path, section: Any):
    schema = TrainingJob.model_json_schema()
    assert not conforms({**job_data(tmp_path), "task": "preference", "preference": section}, schema, schema["$defs"])
