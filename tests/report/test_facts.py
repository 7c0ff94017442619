"""A run's folder as plain values: whole, torn, failed, on its way."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from tests.report.runs_made import STARTED, fail, restarted, training_run
from velocity.config.load import load_job
from velocity.config.resolved import render
from velocity.errors import UserError
from velocity.report.facts import _last_stamp, read_json, read_lines, read_run, settings_of


def test_every_value_of_a_job_comes_with_where_it_was_set(tmp_path: Path):
    run = training_run(tmp_path / "run", optimizer={"learning_rate": 0.5, "kind": "sgd"})
    found = {one.key: (one.value, one.origin) for one in read_run(run.path).settings}
    assert found["seed"] == ("7", "command line")
    assert found["data.train.0.path"][0] == str(tmp_path / "train.jsonl")
    assert found["data.train.0.weight"] == ("1.0", "default")
    assert found["optimizer.learning_rate"][0] == "0.5"
    assert found["optimizer.learning_rate"][1].startswith(str(tmp_path / "run.yaml:"))
    assert found["model.revision"] == ("none", "default")


def test_settings_are_read_as_they_are_written_whatever_they_hold(tmp_path: Path):
    training_run(tmp_path / "run")
    file = tmp_path / "run.yaml"
    job = json.loads(json.dumps({"x # y: z": 1, "b": {"c": 'a "q"  # no origin'}}))
    text = render(load_job(file, [f"deepspeed={json.dumps(job)}"]))
    found = {one.key: one.value for one in settings_of(text)}
    assert found["deepspeed.x # y: z"] == "1"
    assert found["deepspeed.b.c"] == 'a "q"  # no origin'


def test_a_list_of_sources_counts_from_nought(tmp_path: Path):
    run = training_run(tmp_path / "run", data={"train": [{"path": "a.jsonl"}, {"path": "b.jsonl", "weight": 2}]})
    found = {one.key: one.value for one in read_run(run.path).settings}
    assert (found["data.train.0.path"], found["data.train.1.path"]) == ("a.jsonl", "b.jsonl")
    assert found["data.train.1.weight"] == "2.0"


def test_a_failure_is_read_with_its_rank_step_and_trace(tmp_path: Path):
    run = training_run(tmp_path / "run")
    fail(run, "ValueError: no")
    found = read_run(run.path).failed
    assert found is not None
    assert (found.what, found.place, found.trace) == ("ValueError: no", "rank 1 on node-2, step 17", "Traceback: …")


def test_a_run_that_failed_without_a_word_says_so(tmp_path: Path):
    run = training_run(tmp_path / "run")
    run.set_status("failed", cause=None)
    found = read_run(run.path).failed
    assert found is not None and found.what == "no rank could say why"


def test_restarts_are_counted_with_their_steps(tmp_path: Path):
    run = training_run(tmp_path / "run")
    restarted(run, 12)
    assert list(read_run(run.path).restarts) == [12]


def test_the_time_of_a_run_ends_with_its_log(tmp_path: Path):
    run = training_run(tmp_path / "run", steps=30)
    assert read_run(run.path).seconds == 30 * 0.5, "without a log, what its steps add up to"
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(STARTED + 99))
    run.log.write_text(f"2001-01-01 00:00:00  of an earlier start\n{stamp}  done\n")
    assert read_run(run.path).seconds == pytest.approx(100, abs=1.5)


def test_a_run_that_somebody_holds_goes_on_and_else_it_was_killed(tmp_path: Path):
    run = training_run(tmp_path / "run")
    run.set_status("running")
    with run.owned():
        assert read_run(run.path).state == "running"
    assert read_run(run.path).state == "killed"
    assert read_run(run.path, here=False).state == "running", "its writer is elsewhere, and cannot be seen"


def test_files_that_are_absent_torn_or_something_else_count_as_absent(tmp_path: Path):
    run = training_run(tmp_path / "run")
    run.plan.unlink()
    run.environment.write_text('{"data": [')
    (run.path / "evaluation.json").write_text("[1, 2]")
    run.metrics.write_text('{"step": 1, "loss": 2.0}\n[1]\n{"step": 2, "lo')
    found = read_run(run.path)
    assert (found.plan, found.environment, found.evaluation) == ({}, {}, {})
    assert [line["step"] for line in found.steps] == [1]
    assert read_json(tmp_path / "absent.json") == {}


def test_rows_of_one_set_after_another_are_counted_on(tmp_path: Path):
    run = training_run(tmp_path / "run")
    told = [(4, 2.0), (9, 3.0), (5, 1.0), (12, 2.0)]  # a set of 9 rows, then one of 12
    lines = [{"step": step, "rows": step, "rows_per_second": rate, "seconds": 1.0} for step, rate in told]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"step": 21, "evaluated": True}]))
    assert [line["step"] for line in read_run(run.path).rows] == [4, 9, 14, 21]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="not a run folder"):
        read_run(tmp_path)


def test_a_pipe_where_a_file_should_be_keeps_nobody_waiting(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    assert read_json(tmp_path / "pipe") == {}
    assert list(read_lines(tmp_path / "pipe")) == []
    assert _last_stamp(tmp_path / "pipe") is None
