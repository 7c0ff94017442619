"""Reports as files: in a run, of several runs, and never at the price of a run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.report.runs_made import evaluate_run, training_run
from velocity.cli import main
from velocity.errors import UserError
from velocity.report import write
from velocity.report.write import labels, report_end, write_named, write_report


def test_the_report_of_a_run_lies_in_its_folder(tmp_path: Path):
    run = training_run(tmp_path / "run")
    assert write_named([run.path]) == run.path / "report.html"
    assert "<!doctype html>" in (run.path / "report.html").read_text()


def test_several_runs_are_one_file_where_it_was_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    runs = [training_run(tmp_path / name).path for name in ("a", "b")]
    assert write_named([*runs, tmp_path / "both.html"]) == tmp_path / "both.html"
    assert write_named(runs) == Path("report.html")
    assert (tmp_path / "report.html").is_file() and not (runs[0] / "report.html").exists()


def test_how_evaluations_differ_stands_in_the_page(tmp_path: Path):
    runs = [evaluate_run(tmp_path / name, 0.5).path for name in ("stock", "tuned")]

    def compare(folders: object) -> list[dict[str, Any]]:
        assert folders == runs, "the file to write is none of them"
        found = {"seen": {"accuracy": {"words": "no difference that the rows can show"}}}
        return [{"run": str(runs[1]), "with": str(runs[0]), "sets": found}]

    assert "no difference that the rows can show" in write_named([*runs, tmp_path / "x.html"], compare).read_text()


def test_the_command_prints_where_the_page_lies(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    runs = [str(training_run(tmp_path / name).path) for name in ("a", "b")]
    with pytest.raises(SystemExit) as ended:
        main(["show", *runs, "--html", str(tmp_path / "both.html")])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"{tmp_path / 'both.html'}\n")
    with pytest.raises(SystemExit) as ended:
        main(["show", str(tmp_path), "--html"])
    assert ended.value.code == 2 and "not a run folder" in capsys.readouterr().err


def test_a_folder_whose_name_ends_in_html_is_a_run(tmp_path: Path):
    runs = [training_run(tmp_path / name).path for name in ("a", "b.html")]
    assert write_report(runs, tmp_path / "c.html").is_file()
    assert write_named([runs[1]]) == runs[1] / "report.html"


def test_runs_are_told_apart_by_the_shortest_ends_of_their_paths():
    assert labels([Path("x/a"), Path("x/b")]) == ["a", "b"]
    assert labels([Path("x/run"), Path("y/run")]) == ["x/run", "y/run"]
    assert labels([Path("x/run")]) == ["run"]


def test_a_report_of_no_run_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="not a run folder"):
        write_named([tmp_path])


def test_a_run_whose_report_cannot_be_made_is_none_the_worse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run = training_run(tmp_path / "run")

    def broken(*_: object) -> None:
        raise RuntimeError("of a picture\nmore")

    monkeypatch.setattr(write, "write_report", broken)
    before = run.status_file.read_text()
    assert report_end(run.path) is False
    assert "WARNING: no report.html: RuntimeError: of a picture; velocity show" in capsys.readouterr().err
    assert run.status_file.read_text() == before


def test_a_stop_while_the_report_is_made_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(write, "write_report", stopped)
    assert report_end(tmp_path) is True


def test_a_secret_of_the_environment_does_not_reach_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    secret = "swordfish-0815-x"
    monkeypatch.setenv("MY_TOKEN", secret)
    run = training_run(tmp_path / "run")
    run.set_status("complete", why="")
    run.status_file.write_text(run.status_file.read_text().replace('"why": ""', f'"why": "for {secret}"'))
    text = write_named([run.path]).read_text()
    assert secret not in text and "for ***" in text


def test_a_run_of_ten_thousand_steps_is_a_page_below_three_megabytes_made_within_seconds(tmp_path: Path):
    run = training_run(tmp_path / "run", steps=10_000)
    started = time.process_time()
    file = write_named([run.path])
    assert file.stat().st_size < 3e6
    # measured: 0.9 s with the import of matplotlib, on a quiet core; processor time, as others run beside us
    assert time.process_time() - started < 10


def test_nothing_draws_before_a_page_is_made(tmp_path: Path):
    code = "import sys; import velocity.report.write, velocity.start.run; sys.exit('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=dict(os.environ), check=False)
    assert done.returncode == 0


def test_a_run_that_is_measured_and_one_that_trains_share_a_page(tmp_path: Path):
    runs = [training_run(tmp_path / "a").path, evaluate_run(tmp_path / "b", 0.5).path]
    assert write_report(runs, tmp_path / "both.html").stat().st_size > 50_000
