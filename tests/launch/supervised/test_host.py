"""One host of a job: what it is told by its standard input, what it prints, and that nothing of the job outlives it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commands import processes_naming
from velocity.launch.supervised.host import HERE, MARK, STOP

WAITS = "import time; time.sleep(20)"
# Says of each signal which it was, and leaves on the {leaves}th with 75; or, unheard, at last.
HEARS = """
import signal, sys, time
from velocity.process import hear_stops
heard = []
hear_stops(lambda number: (heard.append(number), print(signal.Signals(number).name, flush=True)))
print("ready", flush=True)
end = time.monotonic() + 20
while len(heard) < {leaves}:
    time.sleep(0.01)
    if time.monotonic() > end:
        sys.exit("was not heard")
sys.exit(75)
"""


class Host:
    """`python -m velocity.launch.supervised.host`, with other patience where a test names it."""

    def __init__(self, folder: Path, code: str, *, files: dict[str, str] | None = None, **seconds: float) -> None:
        main = f"import sys; from velocity.launch.supervised.host import main; sys.exit(main(**{seconds}))"
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", main], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder
        )
        order = {
            "folder": "sent/here", "files": files or {}, "environment": {"GIVEN": "7"},
            "command": [sys.executable, "-c", code],
        }  # fmt: skip
        self.say(json.dumps(order) + "\n")

    def say(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def hear(self, line: str) -> None:
        """Wait for a line."""
        assert self.process.stdout is not None
        for heard in self.process.stdout:
            if heard.rstrip("\n") == line:
                return
        raise AssertionError(f"{line} was not printed")

    def end(self) -> tuple[list[str], dict[str, Any]]:
        """What it printed until its end, and the verdict, which its exit status repeats. Its input stays open."""
        assert self.process.stdout is not None
        *lines, last = self.process.stdout.read().rstrip("\n").split("\n")  # the mark ends a line for splitlines()
        assert last.startswith(MARK), last
        verdict = json.loads(last.removeprefix(MARK))
        assert self.process.wait(timeout=30) == verdict["exit_status"]
        return lines, verdict


Start = Callable[..., Host]


@pytest.fixture(name="start")
def _start(tmp_path: Path) -> Iterator[Start]:
    started: list[Host] = []

    def start(code: str, **options: Any) -> Host:
        started.append(Host(tmp_path, code, **options))
        return started[-1]

    yield start
    for host in started:
        with host.process:  # closes its streams
            host.process.kill()


def until(done: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_the_job_prints_comes_out_and_its_exit_status_is_the_verdict(start: Start):
    host = start("import os, sys; print('out', os.environ['GIVEN']); sys.stdout.flush(); print('err', file=sys.stderr)")
    assert host.end() == (["out 7", "err"], {"exit_status": 0, "why": ""})


def test_what_the_launcher_says_is_not_for_the_job_to_read(start: Start):
    host = start("import os, select; print(os.read(0, 9) if select.select([0], [], [], 2)[0] else 'waits')")
    host.say(HERE)
    assert host.end()[0] == ["b''"]


def test_a_last_line_without_an_end_does_not_hide_the_verdict(start: Start):
    assert start("print('no end', end='')").end() == (["no end"], {"exit_status": 0, "why": ""})


def test_the_verdict_that_the_job_wrote_counts_whatever_its_exit_status_is(start: Start):
    verdict = {"exit_status": 2, "why": "a tenth rank\n  where: rank 3 on b"}
    host = start(
        f"import os, sys; open(os.environ['VELOCITY_VERDICT'], 'w').write({json.dumps(verdict)!r}); sys.exit(1)"
    )
    assert host.end()[1] == verdict


def test_without_one_the_last_error_that_was_printed_says_why(start: Start):
    said = ["error: the first", "  fix:   none", "error: the second", "  where: here", "  fix:   this", "saved"]
    host = start(f"import sys; print({chr(10).join(said)!r}); sys.exit(1)")
    assert host.end() == (said, {"exit_status": 1, "why": "the second\n  where: here\n  fix:   this"})


def test_a_job_that_was_killed_is_said_to_be(start: Start):
    _, verdict = start("import os, signal; os.kill(os.getpid(), signal.SIGKILL)").end()
    assert verdict["exit_status"] == 1
    assert verdict["why"].splitlines()[:2] == [
        "the job's process was killed by SIGKILL", f"  where: {os.uname().nodename}"
    ]  # fmt: skip


def test_a_command_that_is_not_there_is_an_error_of_one_line(start: Start, tmp_path: Path):
    host = start("")
    host.process.kill()
    order = {"folder": ".", "files": {}, "environment": {}, "command": ["no-such-python"]}
    done = subprocess.run(
        [sys.executable, "-m", "velocity.launch.supervised.host"], input=json.dumps(order) + "\n",
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
    assert "No such file or directory\n  where: no-such-python" in json.loads(done.stdout.removeprefix(MARK))["why"]


def test_files_are_there_while_the_job_runs_and_gone_afterwards_closed_to_others(start: Start, tmp_path: Path):
    code = "import os; print(open('sent/here/job.yaml').read(), oct(os.stat('sent/here').st_mode & 0o7))"
    assert start(code, files={"job.yaml": "task: sft"}).end()[0] == ["task: sft 0o0"]
    assert list(tmp_path.iterdir()) == []


def test_files_that_were_there_before_stay(start: Start, tmp_path: Path):
    (tmp_path / "sent" / "here").mkdir(parents=True)
    (tmp_path / "sent" / "here" / "job.yaml").touch()
    start("").end()
    assert (tmp_path / "sent" / "here" / "job.yaml").exists()


def test_each_stop_reaches_the_job_as_sigterm_and_a_line_that_only_says_that_we_are_there_does_not(start: Start):
    host = start(HEARS.format(leaves=2))
    host.hear("ready")
    host.say(HERE + STOP)
    host.hear("SIGTERM")
    host.say(HERE + HERE + STOP)
    assert host.end() == (["SIGTERM"], {"exit_status": 75, "why": "the job's process ended with 75"})


def test_a_signal_to_the_host_itself_is_passed_on(start: Start):
    host = start(HEARS.format(leaves=1))
    host.hear("ready")
    host.process.terminate()
    assert host.end()[1]["exit_status"] == 75


def test_a_job_that_does_not_leave_when_asked_twice_is_killed_and_can_go_on_later(start: Start):
    host = start(HEARS.format(leaves=9), at_once_seconds=0.5)
    host.hear("ready")
    host.say(STOP)
    host.hear("SIGTERM")
    time.sleep(1)
    assert host.process.poll() is None, "once it has all the time to save"
    host.say(STOP)
    _, verdict = host.end()
    assert verdict["exit_status"] == 75 and verdict["why"].startswith("stopped before it could save\n"), verdict


def test_when_the_launcher_is_gone_the_job_saves_and_leaves(start: Start):
    host = start(HEARS.format(leaves=1))
    host.hear("ready")
    assert host.process.stdin is not None
    host.process.stdin.close()
    assert host.end() == (["SIGTERM"], {"exit_status": 75, "why": "the job's process ended with 75"})


def test_when_the_launcher_is_gone_nobody_has_to_read_what_the_job_prints(start: Start, tmp_path: Path):
    told = tmp_path / "told"
    code = HEARS.format(leaves=1).replace("sys.exit", f"print('long ' * 99999); open({str(told)!r}, 'w'); sys.exit")
    host = start(code)
    host.hear("ready")
    assert host.process.stdin is not None and host.process.stdout is not None
    host.process.stdout.close()
    host.process.stdin.close()
    host.process.wait(timeout=20)
    assert told.exists()


def test_when_the_launcher_is_gone_and_the_job_does_not_leave_it_is_killed(start: Start):
    host = start(HEARS.format(leaves=9), leave_seconds=0.5)
    host.hear("ready")
    assert host.process.stdin is not None
    host.process.stdin.close()
    assert host.end()[1]["exit_status"] == 75


def test_a_launcher_that_says_nothing_for_too_long_is_gone(start: Start):
    host = start(HEARS.format(leaves=1), silence_seconds=2)
    host.hear("ready")
    for _ in range(6):
        time.sleep(0.5)
        host.say(HERE)
    assert host.process.poll() is None
    begun = time.monotonic()
    assert host.end()[1]["exit_status"] == 75
    assert time.monotonic() - begun > 1


def test_a_launcher_that_goes_away_before_it_has_said_anything_starts_nothing():
    done = subprocess.run(
        [sys.executable, "-m", "velocity.launch.supervised.host"],
        input='{"folder": ".", ',
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "went away" in done.stdout


def test_what_the_job_leaves_behind_is_ended_also_where_it_began_a_session_of_its_own(start: Start):
    mark = f"left-behind-{os.getpid()}"
    child = f"[sys.executable, '-c', {WAITS + '  # ' + mark!r}]"
    start(f"import subprocess, sys; subprocess.Popen({child}, start_new_session=True)").end()
    assert processes_naming(mark) == []


def test_the_job_does_not_outlive_the_host_process(start: Start):
    mark = f"outlives-{os.getpid()}"
    host = start(f"print('ready', flush=True)\n{WAITS}  # {mark}")
    host.hear("ready")
    host.process.send_signal(signal.SIGKILL)
    until(lambda: not processes_naming(mark))
