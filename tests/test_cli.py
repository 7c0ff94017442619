"""The command line as a user meets it: quick to start, checked whole before anything starts, and honest at its end."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.commands import velocity
from tests.making import write_job, write_jsonl
from velocity import cli
from velocity.config.load import load_job, schema
from velocity.config.resolved import render
from velocity.process import STOPS
from velocity.runs.folder import RunFolder

HEAVY = {"torch", "transformers", "deepspeed", "datasets"}


def put_model(folder: Path) -> Path:
    """A model folder that is whole, as far as one can tell without loading it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"num_hidden_layers": 1, "hidden_size": 8, "dtype": "float32"}')
    header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    return folder


def best_of_three(*arguments: object) -> float:
    """Seconds of the quickest of three starts: what the command needs where nothing else runs."""
    took = []
    for _ in range(3):
        started = time.perf_counter()
        velocity(*arguments)
        took.append(time.perf_counter() - started)
    return min(took)


def test_help_comes_within_0_3_seconds_and_names_every_verb():
    done = velocity("--help")
    assert done.returncode == 0
    assert {"run", "check", "show", "export", "schema"} <= set(re.findall(r"^ +([a-z]+) ", done.stdout, re.MULTILINE))
    assert best_of_three("--help") < 0.3


def test_a_wrong_job_file_is_refused_within_a_second(tmp_path: Path):
    job = write_job(tmp_path / "job.yaml", optimiser={"learning_rate": 1.0})
    assert velocity("run", job).returncode == 2
    assert best_of_three("run", job) < 1


@pytest.mark.parametrize("verb", ["--help", "run", "check", "export", "schema"])
def test_nothing_heavy_is_imported_before_a_job_is_known_to_be_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
):
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")  # every import becomes a line on standard error
    job = [write_job(tmp_path / "job.yaml", optimiser={})] if verb in ("run", "check") else []
    nowhere = [tmp_path, tmp_path / "target"] if verb == "export" else []
    done = velocity(verb, *job, *nowhere)
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "velocity.cli" in imported
    assert not {name for name in imported if name.split(".")[0] in HEAVY}


def test_the_schema_is_that_of_a_job_of_any_task():
    done = velocity("schema")
    assert json.loads(done.stdout) == json.loads(json.dumps(schema()))


def test_every_job_file_is_checked_before_the_first_of_them_starts(tmp_path: Path):
    put_model(tmp_path / "good" / "model")
    good = write_job(tmp_path / "good" / "job.yaml")
    bad = write_job(tmp_path / "bad" / "job.yaml", optimiser={})
    done = velocity("run", good, bad)
    assert done.returncode == 2
    assert "unknown key 'optimiser'" in done.stderr
    assert {path.name for path in good.parent.iterdir()} == {"job.yaml", "model"}


def test_two_problems_of_a_job_file_are_said_at_once(tmp_path: Path):
    done = velocity("run", write_job(tmp_path / "job.yaml", optimiser={}, seed="seven"))
    assert "unknown key 'optimiser'" in done.stderr
    assert "seed: " in done.stderr
    assert len(done.stderr.splitlines()) <= 6


def test_a_command_without_a_job_file_is_refused(tmp_path: Path):
    for arguments in (["run"], ["run", "seed=1"], ["check", "seed=1"]):
        done = velocity(*arguments)
        assert done.returncode == 2, arguments
        assert done.stderr


def test_a_dry_run_prints_the_resolved_job_and_the_command_and_starts_nothing(tmp_path: Path):
    put_model(tmp_path / "model")
    job = write_job(tmp_path / "job.yaml")
    done = velocity("run", job, "seed=3", "--processes", "2", "--dry-run")
    assert done.returncode == 0, done.stderr
    *lines, command = done.stdout.splitlines()
    resolved = yaml.safe_load("\n".join(lines))
    assert (resolved["seed"], resolved["launch"]["processes"]) == (3, 2)
    assert next(line for line in lines if line.startswith("seed:")).endswith("# command line")
    assert command.startswith("# ") and command.endswith(f" velocity.training.run {tmp_path}/run")
    assert "velocity.distributed.node 2 " in command
    assert {path.name for path in tmp_path.iterdir()} == {"job.yaml", "model"}


def test_the_number_of_processes_is_checked_like_any_other_setting(tmp_path: Path):
    done = velocity("run", write_job(tmp_path / "job.yaml"), "--processes", "0")
    assert done.returncode == 2
    assert "launch.processes" in done.stderr and "command line" in done.stderr


def test_a_traceback_is_shown_to_those_who_ask_for_it(tmp_path: Path):
    job = write_job(tmp_path / "job.yaml", optimiser={})
    assert "Traceback" not in velocity("run", job).stderr
    asked = velocity("--debug", "run", job)
    assert asked.returncode != 0
    assert "Traceback" in asked.stderr and "unknown key 'optimiser'" in asked.stderr


def make_run(folder: Path) -> RunFolder:
    run = RunFolder(folder / "run")
    run.path.mkdir()
    run.job.write_text(render(load_job(write_job(folder / "job.yaml"))))
    return run


STEP = {"skipped": 0, "loss": 2.0, "tokens": 10, "tokens_per_second": 5.0, "seconds": 2.0, "memory_gib": 1.0}


def test_show_tells_of_a_run_whose_last_line_was_torn(tmp_path: Path):
    run = make_run(tmp_path)
    run.metrics.write_text(json.dumps({"step": 1, **STEP}) + '\n{"step": 2, "lo')
    done = velocity("show", run.path, "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["steps"], summary["losses"], summary["tokens_per_second"]) == (1, [2.0], 5.0)
    for_a_person = velocity("show", run.path)
    assert "1 steps, 10 tokens trained on" in for_a_person.stdout
    assert for_a_person.stderr == ""


def test_show_of_a_folder_that_is_no_run_is_refused(tmp_path: Path):
    write_jsonl(tmp_path / "metrics.jsonl", [])
    done = velocity("show", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: not a run folder: it has no job.yaml")


def test_export_of_a_model_copies_it_and_says_where_to(tmp_path: Path):
    run = make_run(tmp_path)
    put_model(run.model)
    done = velocity("export", run.path, tmp_path / "exported")
    assert (done.returncode, done.stderr) == (0, f"done: {tmp_path}/exported\n")
    assert {path.name for path in (tmp_path / "exported").iterdir()} == {"config.json", "model.safetensors"}


def test_export_of_a_folder_that_is_no_run_is_refused(tmp_path: Path):
    done = velocity("export", tmp_path, tmp_path / "exported")
    assert done.returncode == 2
    assert done.stderr.startswith("error: neither a run folder nor an adapter")
    assert not (tmp_path / "exported").exists()


def failing(error: Exception) -> Any:
    def app(*_: object, **__: object) -> None:
        raise error

    return app


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (FileNotFoundError(2, "No such file or directory", "a.bin"), ["No such file or directory", "a.bin"]),
        (OSError(28, "No space left on device", "a.bin"), ["No space left on device", "a.bin", "free space"]),
        (KeyError("layers"), ["KeyError: 'layers'", "--debug"]),
    ],
)
def test_an_error_that_nobody_expected_is_said_in_three_lines_with_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, says: list[str]
):
    monkeypatch.setattr(cli, "app", failing(error))
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert all(part in said for part in says)
    assert len(said.splitlines()) == 3


def test_arguments_are_those_of_the_process_where_none_are_given(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["velocity", "nonsense"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2


@pytest.fixture(name="_handlers")
def _handlers_stay() -> Iterator[None]:
    """Signals do in this process what they did before."""
    before = {number: signal.getsignal(number) for number in STOPS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_handlers")
@pytest.mark.parametrize(("count", "status"), [(1, 0), (2, 75)])
def test_behind_a_job_that_was_done_before_it_could_be_stopped_no_further_one_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], count: int, status: int
):
    from velocity.start import run as start

    ran: list[Path] = []

    def run_one(job: Any, **_: Any) -> bool:
        ran.append(job.path)
        return True

    monkeypatch.setattr(start, "check_ahead", lambda jobs, fresh: None)
    monkeypatch.setattr(start, "run_one", run_one)
    jobs = [str(write_job(tmp_path / str(number) / "job.yaml")) for number in range(count)]
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", *jobs])
    assert (ended.value.code, list(map(str, ran))) == (status, jobs[:1])
    assert ("run the same command to go on" in capsys.readouterr().err) == (status == 75)


def test_the_second_signal_before_a_rank_has_started_ends_the_command_at_once():
    code = """
import os, signal, time
from velocity import cli
from velocity.process import hear_stops
hear_stops(cli._stop)
try:
    os.kill(os.getpid(), signal.SIGUSR1)
    time.sleep(20)
except KeyboardInterrupt:  # it clears up, which takes a while
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(20)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 75
    assert done.stderr == "error: stopped at once, before the first step\n  fix:   run the same command to go on\n"
