"""What is wrong with a host, from what ssh and a shell there say. Real hosts are asked in test_ssh.py."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from velocity import __version__
from velocity.errors import UserError
from velocity.launch.supervised import reach
from velocity.launch.supervised.reach import Asked, refused, remote, shortcomings

FINE = {"version": __version__, "unknown": [], "taken": ""}


@pytest.mark.parametrize(
    ("exit_status", "said", "what", "where"),
    [
        (255, "ssh: Could not resolve hostname a: none", "unknown host a: ssh: Could not", "launch.hosts: a"),
        (255, "root@a: Permission denied (publickey).", "permission denied by a: root@a", "launch.hosts: a"),
        (255, "No ED25519\nHost key verification failed.", "the key of a is not known here: Host", "launch.hosts: a"),
        (255, "ssh: connect to host a port 22: No route to host", "a cannot be reached: ssh: ", "launch.hosts: a"),
        (255, "", "a cannot be reached: ssh ended with 255", "launch.hosts: a"),
        (41, "sh: 1: cd: can't cd to /x", "a has no such folder: sh: 1: cd", "launch.folder on a"),
        (41, "bash: line 1: cd: /x: Permission denied", "a has no such folder: bash", "launch.folder on a"),
        (127, "bash: line 1: exec: py: not found", "a has no such Python: bash", "launch.python on a"),
        (126, "bash: /x: Permission denied", "a has no such Python: bash", "launch.python on a"),
        (1, "ImportError: no json", "the Python of a does not work: ImportError", "launch.python on a"),
    ],
)
def test_what_was_said_becomes_one_problem_of_the_field_that_is_wrong(
    exit_status: int, said: str, what: str, where: str
):
    problem = refused("a", exit_status, said)
    assert problem.what.startswith(what) and problem.where == where and problem.fix, problem


def test_a_host_without_shortcomings_has_no_problem():
    assert list(shortcomings(Asked("a", [], 29400), FINE)) == []


def test_each_shortcoming_of_a_host_is_a_problem_of_its_own():
    found = list(shortcomings(Asked("a", [], 29400), {"version": None, "unknown": ["b", "c"], "taken": "in use"}))
    assert [problem.what for problem in found] == [
        "the Python of a has no Velocity", "port 29400 of a is taken: in use", "a does not know the host b",
        "a does not know the host c",
    ]  # fmt: skip


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_the_line_goes_into_the_folder_and_runs_the_python_there(tmp_path: Path, shell: str):
    folder = tmp_path / "it's a folder"
    folder.mkdir()
    (folder / "python").symlink_to(sys.executable)
    line = remote(str(folder), "./python", ["a b", "c"], 7)
    code = "import os, sys; print(os.getcwd(), sys.argv)"
    done = subprocess.run([shell, "-c", line], input=code, capture_output=True, text=True)
    assert done.stdout == f"{folder} ['-', '7', 'a b', 'c']\n", done.stderr
    folder.rename(tmp_path / "other")
    done = subprocess.run([shell, "-c", line], input=code, capture_output=True, text=True)
    assert done.returncode == reach.NO_FOLDER and "cd" in done.stderr


def test_all_hosts_are_asked_at_once_and_one_that_does_not_answer_in_time_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reach, "ANSWER_SECONDS", 1.5)
    begun = time.monotonic()
    with pytest.raises(UserError) as caught:
        reach.check([Asked(name, ["sleep", "9"], 0) for name in "abcd"])
    assert [problem.what for problem in caught.value.problems] == [
        f"{name} did not answer within 2 s" for name in "abcd"
    ]
    assert time.monotonic() - begun < 5
