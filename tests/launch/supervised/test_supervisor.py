"""The process that stays with a job: how hosts' ends become the job's, and that hosts are told, and not outlived."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.commands import processes_naming
from velocity.launch.supervised.supervisor import ENDED, NODES, End, conclude
from velocity.process import children

DONE = {"exit_status": 0, "why": ""}
SAVED = {"exit_status": 75, "why": "stopped after step 3"}
WRONG = {"exit_status": 2, "why": "no such file"}
FAILED = {"exit_status": 1, "why": "IndexError: 7\n  where: rank 3 on b"}
SAYS = "import sys; print('hello'); sys.exit({})"
WAITS = "import time; print('ready', flush=True); time.sleep(20)"
SAVES = """
import signal, sys, time
from velocity.process import hear_stops
hear_stops(lambda number: (print("saved", flush=True), sys.exit(75)))
print("ready", flush=True)
time.sleep(20)
"""


def ends(*verdicts: tuple[int, dict[str, Any] | None]) -> list[End]:
    """In the order in which they came: the host's place, and its verdict."""
    return [End(index, "abc"[index], verdict, f"Connection to {'abc'[index]} closed") for index, verdict in verdicts]


@pytest.mark.parametrize(
    ("came", "expected"),
    [
        (ends((0, DONE), (1, DONE)), DONE),
        (ends((1, DONE), (0, SAVED)), SAVED),
        (ends((1, SAVED), (0, SAVED)), SAVED),
        (ends((0, WRONG), (1, None)), WRONG),
        (ends((1, {**FAILED, "why": "peer"}), (0, FAILED)), FAILED),
        (ends((0, DONE), (1, None)), DONE),
        (ends((1, None), (0, SAVED)), SAVED),
    ],
)
def test_the_first_hosts_word_is_the_jobs(came: Sequence[End], expected: dict[str, Any]):
    assert conclude(came, asked=True) == expected


def test_where_the_first_host_says_nothing_the_first_that_failed_does():
    assert conclude(ends((1, FAILED), (0, None)), asked=False) == FAILED


@pytest.mark.parametrize(
    ("came", "asked", "expected"),
    [
        (ends((1, FAILED), (0, SAVED)), False, FAILED),
        (ends((1, FAILED), (0, SAVED)), True, SAVED),
        (ends((0, SAVED), (1, FAILED)), False, SAVED),
        (ends((1, None), (0, SAVED)), False, SAVED),  # that host was shut down, and told the job before
    ],
)
def test_who_was_stopped_for_anothers_failure_does_not_hide_it(
    came: Sequence[End], asked: bool, expected: dict[str, Any]
):
    assert conclude(came, asked=asked) == expected


@pytest.mark.parametrize("said", [None, FAILED, {"exit_status": 1, "why": "connection closed by peer"}])
def test_a_host_that_went_first_and_said_nothing_is_named_with_what_its_connection_said(said: dict[str, Any] | None):
    found = conclude(ends((2, None), (0, said), (1, said)), asked=False)
    what, where, _ = found["why"].splitlines()
    assert (what, where) == ("c is gone: Connection to c closed", "  where: host c")
    assert found["exit_status"] == 1


@pytest.mark.parametrize(("named", "counts"), [("c", True), ("c-1", False), ("a.c", False)])
def test_unless_the_first_host_names_it_by_itself(named: str, counts: bool):
    said = {"exit_status": 1, "why": f"host {named} gave no sign for 30 s"}
    assert (conclude(ends((2, None), (0, said)), asked=False) == said) is counts


class Job:
    """A supervisor over hosts of this machine: each runs a piece of code."""

    def __init__(
        self, folder: Path, codes: Sequence[str], *, patience_seconds: Sequence[float] = (600, 600, 600)
    ) -> None:
        self.folder = folder
        self.mark = f"job-{os.getpid()}-{folder.name}"
        nodes = [
            {"host": "abc"[index], "command": [sys.executable, "-m", "velocity.launch.supervised.host"], "order": {
                "folder": str(folder / str(index)), "environment": {},
                "command": [sys.executable, "-c", f"{code}  # {self.mark}"],
            }} for index, code in enumerate(codes)
        ]  # fmt: skip
        (folder / "job.yaml").write_text("task: sft")
        (folder / NODES).write_text(json.dumps({"files": ["job.yaml"], "nodes": nodes}))
        call = f"main(pathlib.Path({str(folder)!r}), patience_seconds={patience_seconds})"
        main = f"import sys, pathlib; from velocity.launch.supervised.supervisor import main; sys.exit({call})"
        self.process = subprocess.Popen(
            [sys.executable, "-c", main], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []

    def hear(self, *expected: str) -> None:
        """Wait for these lines."""
        assert self.process.stdout is not None
        while not {*expected} <= {*self.lines}:
            line = self.process.stdout.readline()
            assert line, self.lines
            self.lines.append(line.rstrip("\n"))

    def end(self) -> dict[str, Any]:
        """How it ended, as its file says and its exit status repeats."""
        assert self.process.stdout is not None
        self.lines += self.process.stdout.read().splitlines()
        ended: dict[str, Any] = json.loads((self.folder / ENDED).read_text())
        assert self.process.wait(timeout=30) == ended["exit_status"], self.lines
        return ended


@pytest.fixture(name="job")
def _job(tmp_path: Path) -> Iterator[Any]:
    started: list[Job] = []

    def start(*codes: str, **options: Any) -> Job:
        started.append(Job(tmp_path, codes, **options))
        return started[-1]

    yield start
    for job in started:
        with job.process:
            job.process.kill()
        until_gone(job)


def until_gone(job: Job, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while processes_naming(job.mark):
        assert time.monotonic() < deadline, "its processes outlive it"
        time.sleep(0.05)


def test_lines_of_all_but_the_first_host_begin_with_its_name(job: Any):
    started = job(*[SAYS.format(0)] * 3)
    assert started.end() == DONE
    assert sorted(started.lines) == ["b: hello", "c: hello", "hello"]


def test_a_secret_is_not_printed(job: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "planted-secret-of-a-test")
    started = job("import os; print('token', os.environ['HF_TOKEN'])")
    assert started.end() == DONE
    assert started.lines == ["token ***"]


def test_each_host_is_sent_the_jobs_files(job: Any, tmp_path: Path):
    started = job(*(f"print(open({str(tmp_path / number / 'job.yaml')!r}).read())" for number in "01"))
    assert started.end() == DONE
    assert sorted(started.lines) == ["b: task: sft", "task: sft"]


def test_asked_to_stop_it_asks_all_hosts_and_waits_for_them(job: Any):
    started = job(SAVES, SAVES)
    started.hear("ready", "b: ready")
    started.process.send_signal(signal.SIGTERM)
    assert started.end()["exit_status"] == 75
    assert {"saved", "b: saved"} <= {*started.lines}
    until_gone(started, 0.5)


def test_its_death_ends_the_job_on_every_host_in_good_order(job: Any):
    started = job(SAVES, SAVES)
    started.hear("ready", "b: ready")
    started.process.kill()
    until_gone(started)
    assert not (started.folder / ENDED).exists()


def test_a_host_that_is_gone_is_named_once_the_others_have_ended(job: Any):
    started = job(SAYS.format(1).replace("; print", ", time; time.sleep(2); print"), WAITS)
    started.hear("b: ready")
    [of_b] = [pid for pid in children(started.process.pid) if any(map(waits, children(pid)))]
    os.kill(of_b, signal.SIGKILL)
    assert started.end()["why"].splitlines()[:2] == ["b is gone: its command was killed by SIGKILL", "  where: host b"]
    assert "hello" in started.lines


def test_hosts_that_go_on_though_another_one_failed_are_asked_to_stop_after_a_while(job: Any):
    started = job(SAVES, SAYS.format(3), patience_seconds=(1, 60, 60))
    assert started.end() == {"exit_status": 3, "why": "the job's process ended with 3"}
    assert started.lines[-1] == "saved"


def test_hosts_that_do_not_hear_are_left_and_then_given_up(job: Any):
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + WAITS
    started = job(SAYS.format(3), deaf, patience_seconds=(1, 1, 1))
    begun = time.monotonic()
    assert started.end() == {"exit_status": 3, "why": "the job's process ended with 3"}
    assert time.monotonic() - begun < 20
    until_gone(started)


def test_a_command_that_is_not_there_is_how_it_ended(job: Any, tmp_path: Path):
    plan = {"files": [], "nodes": [{"host": "a", "command": ["no-such-ssh"], "order": {}}]}
    (tmp_path / NODES).write_text(json.dumps(plan))
    done = subprocess.run(
        [sys.executable, "-m", "velocity.launch.supervised.supervisor", str(tmp_path)], capture_output=True
    )
    assert (done.returncode, done.stderr) == (1, b"")
    assert "no-such-ssh" in json.loads((tmp_path / ENDED).read_text())["why"]


def waits(pid: int) -> bool:
    return WAITS in Path(f"/proc/{pid}/cmdline").read_text()
