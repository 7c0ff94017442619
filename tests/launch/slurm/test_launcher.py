"""What becomes of a job on Slurm, as Slurm and its own last words say. tests/faults has a real one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.launch.slurm.submissions import NAME
from velocity.errors import JobError
from velocity.launch.launcher import Submitted
from velocity.launch.slurm import launcher as slurm_launcher
from velocity.launch.slurm.launcher import SlurmLauncher, _Log


@pytest.fixture(name="sent")
def _sent(tmp_path: Path) -> Submitted:
    return Submitted(NAME, "slurm", "7", tmp_path, ["runs/sft"], 0.0)


def say(monkeypatch: pytest.MonkeyPatch, **facts: str) -> None:
    """Slurm says this of the job; nothing where it has forgotten it."""
    monkeypatch.setattr(slurm_launcher, "facts_of", lambda submitted: facts)
    monkeypatch.setattr(slurm_launcher, "SHARED_SECONDS", 0.0)


def write_end(sent: Submitted, exit_status: int, why: str = "") -> None:
    (sent.folder / "ended.json").write_text(json.dumps({"exit_status": exit_status, "why": why}))


@pytest.mark.parametrize(
    ("slurm_says", "state", "exit_status"),
    [
        ("PENDING", "waiting", None), ("REQUEUED", "waiting", None), ("RUNNING", "running", None),
        ("COMPLETING", "running", None), ("TIMEOUT", "interrupted", 75), ("PREEMPTED", "interrupted", 75),
        ("NODE_FAIL", "failed", 1), ("OUT_OF_MEMORY", "failed", 1), ("CANCELLED", "cancelled", 75),
        ("COMPLETED", "failed", 1), ("FAILED", "failed", 1), ("", "failed", 1),
    ],
)  # fmt: skip
def test_slurms_word_counts_for_a_job_that_has_left_none(
    sent: Submitted, monkeypatch: pytest.MonkeyPatch, slurm_says: str, state: str, exit_status: int | None
):
    say(monkeypatch, **({"JobState": slurm_says, "Reason": "None", "ExitCode": "1:0"} if slurm_says else {}))
    found = SlurmLauncher().status(sent)
    assert (found.state, found.exit_status) == (state, exit_status)
    assert len(found.why.splitlines()) == (3 if found.over else found.state == "waiting")


@pytest.mark.parametrize("slurm_says", ["COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", ""])
@pytest.mark.parametrize(("exit_status", "state"), [(0, "complete"), (75, "interrupted"), (2, "failed")])
def test_what_a_job_has_said_at_its_end_counts_more_than_slurms_word(
    sent: Submitted, monkeypatch: pytest.MonkeyPatch, slurm_says: str, exit_status: int, state: str
):
    say(monkeypatch, JobState=slurm_says)
    write_end(sent, exit_status, "why")
    found = SlurmLauncher().status(sent)
    assert (found.state, found.exit_status, found.why) == (state, exit_status, "why")


def test_what_an_earlier_attempt_has_said_does_not_count_while_the_job_goes_on(
    sent: Submitted, monkeypatch: pytest.MonkeyPatch
):
    write_end(sent, 0)
    for slurm_says, state in (("PENDING", "waiting"), ("RUNNING", "running")):
        say(monkeypatch, JobState=slurm_says, Reason="BeginTime")
        assert SlurmLauncher().status(sent).state == state


def test_a_log_is_followed_until_the_job_is_over_also_while_slurm_does_not_answer(
    sent: Submitted, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    says: list[Mapping[str, str]] = [
        {"JobState": "PENDING", "Reason": "Priority"}, {}, {"JobState": "RUNNING"}, {"JobState": "PENDING"},
        {"JobState": "RUNNING"}, {"JobState": "COMPLETED"},
    ]  # fmt: skip

    def facts_of(_: Submitted) -> Mapping[str, str]:
        facts = says.pop(0)
        if not facts:
            raise JobError("Slurm does not answer: timed out")
        with (sent.folder / "log.txt").open("a") as stream:
            stream.write(f"{facts['JobState']}\n")
        return facts

    monkeypatch.setattr(slurm_launcher, "facts_of", facts_of)
    monkeypatch.setattr(slurm_launcher, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(slurm_launcher, "ASK_SECONDS", 0.001)
    write_end(sent, 0)
    lines = list(SlurmLauncher().logs(sent, follow=True))
    assert lines == ["PENDING", "RUNNING", "PENDING", "RUNNING", "COMPLETED"]
    assert capsys.readouterr().err.splitlines() == [
        f"{NAME}: in the queue: Priority", f"{NAME}: Slurm does not answer: timed out", f"{NAME}: in the queue",
    ]  # fmt: skip


def test_a_log_that_is_not_followed_is_told_without_asking_slurm(sent: Submitted, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(slurm_launcher, "facts_of", None)
    (sent.folder / "log.txt").write_text("one\ntwo")
    assert list(SlurmLauncher().logs(sent, follow=False)) == ["one", "two"]


def test_a_log_is_told_line_by_line_each_once_also_where_a_line_comes_in_parts(tmp_path: Path):
    log = _Log(tmp_path / "log.txt")
    assert list(log.lines()) == [], "there is none yet"
    seen = []
    for part in (b"one\ntw", b"o \xc3", b"\xa9\nthree\nfour"):
        with log.path.open("ab") as stream:
            stream.write(part)
        seen.append(list(log.lines()))
    assert seen == [["one"], [], ["two é", "three"]]
    assert list(log.lines()) == []
    assert list(log.rest()) == ["four"]
