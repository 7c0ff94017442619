"""Every job file that is shipped loads, finds its place on a laptop and on eight GPUs, and says what it is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import ROOT
from tests.making import tiny_model_folder
from velocity.config.job import LoadedJob, flatten
from velocity.config.launch import TARGETS
from velocity.config.load import TASKS, load_job, read_resolved
from velocity.config.resolved import render
from velocity.config.training import TrainingJob
from velocity.distributed.ds_config import deepspeed_config
from velocity.launch import command
from velocity.planner.hardware import Hardware
from velocity.planner.machines import Cluster
from velocity.start.families import family_of

FILES = sorted([*ROOT.glob("jobs/**/*.y*ml"), *ROOT.glob("examples/**/*.y*ml")])
NAMES = [file.relative_to(ROOT).as_posix() for file in FILES]
TRAINING = [name for name in NAMES if isinstance(load_job(ROOT / name).job, TrainingJob)]
LAPTOP = Hardware(cores=8, memory_gib=16.0, cpu_bf16=False)
GPUS = Hardware(cores=96, memory_gib=1024.0, cpu_bf16=True, gpus=(("NVIDIA H100 80GB HBM3", 79.6, 9.0),) * 8)
# `auto` is what the model loader is told: it takes the same attention on every machine.
KEPT = {"model.attention"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model"))


def undecided(values: dict[str, Any]) -> list[str]:
    return [key for key, value in flatten(values).items() if value == "auto" and key not in KEPT]


def resolved(name: str, hardware: Hardware, model: Path) -> LoadedJob:
    loaded = load_job(ROOT / name)
    return family_of(loaded.job).plan(loaded, Cluster(hardware), model)


def test_there_are_job_files_to_begin_with_and_the_demo_has_its_two():
    assert len([name for name in NAMES if name.startswith("jobs/")]) >= 5
    assert {"examples/security/pretrain.yaml", "examples/security/sft.yaml"} <= set(NAMES)


def test_the_job_files_show_every_task_and_all_parameters_as_well_as_an_adapter():
    jobs = [load_job(ROOT / name).job for name in NAMES if name.startswith("jobs/")]
    assert {job.task for job in jobs} == set(TASKS)
    for task in ("sft", "preference"):
        assert {job.adapter is None for job in jobs if job.task == task} == {True, False}, task
    assert {job.reference for job in jobs if job.task == "preference"} == {"cached", "live"}


@pytest.mark.parametrize("name", NAMES)
def test_a_job_file_says_in_its_first_line_what_it_is_for(name: str):
    first = (ROOT / name).read_text("utf-8").splitlines()[0]
    assert first.startswith("# ") and len(first) > 30, f"{name}:1 is no comment"


@pytest.mark.parametrize("hardware", [LAPTOP, GPUS], ids=["laptop", "eight GPUs"])
@pytest.mark.parametrize("name", NAMES)
def test_the_planner_leaves_nothing_undecided_and_says_why(name: str, hardware: Hardware, model: Path):
    before, after = load_job(ROOT / name), resolved(name, hardware, model)
    assert undecided(after.job.model_dump()) == []
    for key in undecided(before.job.model_dump()):
        assert after.origins[key].startswith("planner: "), f"{name}: {key} was chosen without a reason"


@pytest.mark.parametrize("hardware", [LAPTOP, GPUS], ids=["laptop", "eight GPUs"])
@pytest.mark.parametrize("name", NAMES)
def test_the_resolved_job_is_written_and_read_back_as_the_same(
    name: str, hardware: Hardware, model: Path, tmp_path: Path
):
    job = resolved(name, hardware, model)
    (tmp_path / "job.yaml").write_text(render(job), "utf-8")
    assert read_resolved(tmp_path / "job.yaml") == job.job


@pytest.mark.parametrize("name", TRAINING)
def test_deepspeed_is_told_the_strategy_and_the_rows_of_the_job(name: str, model: Path):
    job = resolved(name, GPUS, model).job
    config = deepspeed_config(job, int(job.launch.processes))
    assert config["zero_optimization"]["stage"] == job.strategy.zero
    assert config["train_micro_batch_size_per_gpu"] == job.batch.micro
    assert config[str(job.strategy.precision)] == {"enabled": True}  # these GPUs have bf16: no job is left in fp32
    for section, settings in job.deepspeed.items():
        assert settings.items() <= config[section].items(), f"{name}: deepspeed.{section} is not passed on"


@pytest.mark.parametrize("name", NAMES)
def test_no_two_job_files_write_the_same_run_folder(name: str):
    others = [load_job(ROOT / other).job.output for other in NAMES if other != name]
    assert load_job(ROOT / name).job.output not in others


LAUNCHED = [name for name in NAMES if load_job(ROOT / name).job.launch.kind != "local"]


def test_the_job_files_show_every_target():
    assert {load_job(ROOT / name).job.launch.kind for name in LAUNCHED} == set(TARGETS) - {"local"}


@pytest.mark.parametrize("name", LAUNCHED)
def test_a_job_file_for_a_target_is_rendered_for_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    loaded = load_job(ROOT / name)
    for key, value in flatten(loaded.job.data.model_dump()).items():
        if key.endswith(".path") and "://" not in value:
            file = tmp_path / value.replace("*", "one")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    sent = command.rendered(command.make_submission([loaded], ()))
    assert len(sent) >= 2, "the job file, and what the target is told"
    assert any("velocity" in text and loaded.job.launch.kind in text for text in sent.values())
