"""Jobs that a supervisor stays with: where they are, what they print, how they are asked to stop."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.commands import processes_naming
from tests.making import job_data
from velocity.config.training import TrainingJob
from velocity.launch.launcher import JobStatus, Submission, Submitted
from velocity.launch.supervised.here import Here
from velocity.launch.supervised.launcher import SUPERVISOR, SupervisedLauncher
from velocity.launch.supervised.supervisor import ENDED
from velocity.launch.supervised.way import Host, rendered

SAVES = """
import signal, sys, time
from velocity.process import hear_stops
def leave(number):
    print("saved", end="", flush=True)
    sys.exit(75)
hear_stops(leave)
print("ready", flush=True)
time.sleep(20)
"""
Start = Callable[[str], Submitted]
LAUNCHER = SupervisedLauncher(Here())  # the way matters only where a job is rendered or checked


def until(done: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(name="start")
def _start(tmp_path: Path) -> Iterator[Start]:
    def start(code: str) -> Submitted:
        order = {"folder": str(tmp_path), "environment": {}, "command": [sys.executable, "-c", code]}
        host = Host("a", [sys.executable, "-m", "velocity.launch.supervised.host"], order)
        for name, text in rendered([host], []).items():
            (tmp_path / name).write_text(text)
        job = TrainingJob.model_validate(job_data(tmp_path))
        return LAUNCHER.submit(Submission("sft-1", tmp_path, [job], {}))

    yield start
    for pid in processes_naming(f"velocity.launch.supervised.supervisor {tmp_path}"):
        os.kill(pid, signal.SIGKILL)


def test_what_was_started_has_its_name_its_outputs_and_a_process_of_its_own(start: Start, tmp_path: Path):
    sent = start("pass")
    assert (sent.name, sent.kind, sent.folder, list(sent.outputs)) == ("sft-1", "local", tmp_path, [f"{tmp_path}/run"])
    pid = int(sent.id.removeprefix("process "))
    assert os.getsid(pid) == pid, "what ends our terminal does not end it"
    until(lambda: LAUNCHER.status(sent).over)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("pass", JobStatus("complete", 0)),
        ("print('error: none is left'); raise SystemExit(1)", JobStatus("failed", 1, "none is left")),
        ("print('error: wrong'); raise SystemExit(2)", JobStatus("failed", 2, "wrong")),
        ("print('error: saved'); raise SystemExit(75)", JobStatus("interrupted", 75, "saved")),
    ],
)
def test_it_runs_until_it_has_ended_and_then_says_how(start: Start, code: str, expected: JobStatus):
    sent = start(f"import time; time.sleep(1); {code}")
    assert LAUNCHER.status(sent) == JobStatus("running")
    until(lambda: LAUNCHER.status(sent).over)
    assert LAUNCHER.status(sent) == expected


def test_lines_are_followed_as_they_come_until_it_is_over(start: Start):
    sent = start(SAVES)
    lines = LAUNCHER.logs(sent, follow=True)
    assert next(lines) == "ready"
    threading.Timer(0.5, LAUNCHER.cancel, [sent]).start()
    assert list(lines) == ["saved"]
    assert LAUNCHER.status(sent).state == "interrupted"
    assert list(LAUNCHER.logs(sent, follow=True)) == list(LAUNCHER.logs(sent, follow=False)) == ["ready", "saved"]


def test_without_following_what_there_is_comes_at_once(start: Start):
    sent = start(SAVES)
    until(lambda: list(LAUNCHER.logs(sent, follow=False)) == ["ready"])
    LAUNCHER.cancel(sent)
    until(lambda: LAUNCHER.status(sent).over)


def test_whom_we_ask_to_stop_while_it_starts_hears_it(start: Start):
    sent = start(SAVES)
    LAUNCHER.cancel(sent)
    until(lambda: LAUNCHER.status(sent).over)
    assert LAUNCHER.status(sent).exit_status == 75


def test_a_job_whose_supervisor_was_killed_has_failed_and_its_logs_end(start: Start):
    sent = start(SAVES)
    until(lambda: list(LAUNCHER.logs(sent, follow=False)) == ["ready"])
    os.kill(int(sent.id.removeprefix("process ")), signal.SIGKILL)
    assert list(LAUNCHER.logs(sent, follow=True))[0] == "ready"
    found = LAUNCHER.status(sent)
    assert (found.state, found.exit_status) == ("failed", 1)
    assert found.why.startswith("the process that watched it was killed\n  where: ")


def test_a_process_that_has_its_number_later_is_not_taken_for_it(start: Start, tmp_path: Path):
    sent = start("pass")
    until(lambda: LAUNCHER.status(sent).over)
    (tmp_path / ENDED).unlink()
    facts = json.loads((tmp_path / SUPERVISOR).read_text())
    (tmp_path / SUPERVISOR).write_text(json.dumps({**facts, "pid": os.getpid()}))
    assert LAUNCHER.status(sent).state == "failed"
    LAUNCHER.cancel(sent)  # or we would end here
