"""A run folder teaches the planner: the job that was run is predicted anew, and later plans use what it taught."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.making import hollow_model_folder, job_data, write_job
from velocity.config.job import LoadedJob
from velocity.config.load import load_job
from velocity.config.resolved import render
from velocity.errors import UserError
from velocity.planner.hardware import Hardware
from velocity.planner.learn import learn_from, print_learned
from velocity.planner.machines import Cluster
from velocity.planner.plan import plan_job, resolve

GPU = Hardware(8, 64.0, cpu_bf16=True, gpus=(("NVIDIA H100 80GB HBM3", 80.0, 9.0),))


def finished(tmp_path: Path) -> tuple[LoadedJob, Path, Path]:
    """A job, its model's folder, and the folder of a run of it on one GPU: 20 GiB at most, 5,000 tokens a second."""
    model = hollow_model_folder(tmp_path / "model", 100_000_000)
    loaded = load_job(write_job(tmp_path / "job.yaml", optimizer={"learning_rate": 1e-4}))
    run = tmp_path / "run"
    run.mkdir()
    (run / "job.yaml").write_text(render(resolve(loaded, Cluster(GPU), model)))
    (run / "environment.json").write_text(json.dumps({"hardware": GPU.describe(), "model_folder": str(model)}))
    line = {"loss": 1.0, "memory_gib": 20.0, "tokens_per_second": 5000.0}
    (run / "metrics.jsonl").write_text("".join(json.dumps({"step": n, **line}) + "\n" for n in range(5)))
    return loaded, model, run


def test_a_later_plan_predicts_what_the_run_measured_and_says_that_it_was_taught(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    loaded, model, run = finished(tmp_path)
    before = plan_job(loaded, Cluster(GPU), model)
    learned = learn_from(run)
    assert learned["machine"] == "gpu NVIDIA H100 80GB HBM3"
    assert Path(learned["file"]) == Path(job_data(tmp_path)["data"]["cache"]) / "calibration.json"
    after = plan_job(loaded, Cluster(GPU), model)
    assert before.calibrated == "" and "calibrated by runs on gpu NVIDIA H100" in after.calibrated
    assert before.chosen is not None and after.chosen is not None
    speeds = [one.speed.tokens_per_second for one in (before.chosen, after.chosen)]
    # 5,000 are less than a quarter of what was predicted, which is as far as one run teaches
    assert speeds[1] == pytest.approx(speeds[0] / 4, rel=1e-3)
    print_learned(learned)
    assert "measured 20.00 GiB a rank" in capsys.readouterr().out


def test_what_is_no_run_or_has_lost_its_model_teaches_nothing(tmp_path: Path):
    with pytest.raises(UserError, match="no run of Velocity"):
        learn_from(tmp_path)
    _, model, run = finished(tmp_path)
    (model / "config.json").unlink()
    with pytest.raises(UserError, match="the model of the run is gone"):
        learn_from(run)
