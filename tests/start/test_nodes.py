"""A node says at its end how it went, where its target wants to find it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from velocity.errors import JobError, UserError, VelocityError
from velocity.launch.place import Place
from velocity.start import nodes

ALONE = Place(("gpu-1",), 0)
SECOND = Place(("gpu-1", "gpu-2"), 1)


@pytest.fixture(name="verdict")
def _verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "verdict.json"
    monkeypatch.setenv("VELOCITY_VERDICT", str(file))
    monkeypatch.setattr(nodes, "find_place", lambda target: ALONE)
    monkeypatch.setattr(nodes, "run_all", lambda jobs, fresh, started: None)
    return file


def nothing() -> Sequence[Any]:
    return []


def fails() -> Sequence[Any]:
    raise UserError("no such file", "data.train", "give another")


def test_a_job_that_is_done_is_said_to_be(verdict: Path):
    nodes.run_here("ssh", nothing, started=0.0)
    assert json.loads(verdict.read_text()) == {"exit_status": 0, "why": ""}


def test_why_it_ended_is_said_with_its_exit_status(verdict: Path):
    with pytest.raises(UserError):
        nodes.run_here("ssh", fails, started=0.0)
    why = "no such file\n  where: data.train\n  fix:   give another"
    assert json.loads(verdict.read_text()) == {"exit_status": 2, "why": why}


def test_a_defect_is_an_error_like_any_other(verdict: Path):
    def breaks() -> Sequence[Any]:
        raise KeyError("x")

    with pytest.raises(JobError, match="KeyError"):
        nodes.run_here("ssh", breaks, started=0.0)
    assert json.loads(verdict.read_text())["exit_status"] == 1


@pytest.mark.parametrize("heard", [True, False])
def test_an_error_that_the_first_node_says_is_one_line_here_and_whole_in_the_verdict(
    verdict: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], heard: bool
):
    class Crew:
        def __init__(self, place: Place, meeting: Any) -> None:
            self.heard = heard

        def give_up(self, error: VelocityError) -> None:
            pass

    class Meeting:
        def __init__(self, *_: Any) -> None:
            pass

        def leave(self) -> None:
            pass

    def runs(*_: Any, **__: Any) -> None:
        raise JobError("a process was killed by SIGKILL", "rank 0 on gpu-1")

    for name, made in (("Nodes", Crew), ("Meeting", Meeting), ("run_all", runs), ("find_place", lambda _: SECOND)):
        monkeypatch.setattr(nodes, name, made)
    with pytest.raises(SystemExit if heard else JobError) as ended:
        nodes.run_here("slurm", nothing, started=0.0)
    line = "gpu-2 ends with gpu-1, which says why: a process was killed by SIGKILL\n"
    assert capsys.readouterr().err == (line if heard else "")
    assert getattr(ended.value, "code", 1) == 1
    why = "a process was killed by SIGKILL\n  where: rank 0 on gpu-1"
    assert json.loads(verdict.read_text()) == {"exit_status": 1, "why": why}


def test_a_file_that_is_there_is_written_in_its_place_as_nothing_can_take_it(verdict: Path):
    verdict.touch()
    number = verdict.stat().st_ino
    with pytest.raises(UserError):
        nodes.run_here("kubernetes", fails, started=0.0)
    assert verdict.stat().st_ino == number
    assert json.loads(verdict.read_text())["exit_status"] == 2


def test_a_secret_is_in_no_verdict(verdict: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "planted-secret-0815")

    def tells() -> Sequence[Any]:
        raise UserError("refused: planted-secret-0815")

    with pytest.raises(UserError):
        nodes.run_here("ssh", tells, started=0.0)
    assert "planted" not in verdict.read_text()


def test_what_a_target_does_around_the_work_comes_before_it_and_behind_it(
    verdict: Path, monkeypatch: pytest.MonkeyPatch
):
    did: list[str] = []

    class Around:
        def begin(self) -> None:
            did.append("begin")

        def leave(self, error: VelocityError) -> None:
            did.append(str(error))

    monkeypatch.setattr(nodes, "AROUND", {"sagemaker": Around()})
    with pytest.raises(UserError):
        nodes.run_here("sagemaker", fails, started=0.0)
    assert did[0] == "begin" and did[1].startswith("no such file")
    assert "sagemaker" in nodes.AROUND
