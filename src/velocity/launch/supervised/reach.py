"""Whether hosts could run a job: all of them are asked at once, before anything starts. It knows no job."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from velocity import __version__
from velocity.errors import Problem, UserError
from velocity.launch.supervised import probe

ANSWER_SECONDS = 60.0
CONNECTION, NO_FOLDER, NO_PROGRAM = 255, 41, (126, 127)  # exit statuses: ssh's own, ours, every shell's
HOSTS = "launch.hosts"
# What ssh says, what that means, and what to do.
REFUSALS = {
    "Could not resolve hostname": ("unknown host {host}", "write its name as ssh knows it, or its address"),
    "Permission denied": (
        "permission denied by {host}", "ssh {host} has to work without a password: ssh-copy-id {host}, or launch.config"
    ),
    "Host key verification failed": ("the key of {host} is not known here", "ssh {host} once by hand, and look at it"),
}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """A host, the command that makes it answer, and the port that it has to have free, or 0."""

    host: str
    command: Sequence[str]
    port: int


def remote(folder: str, python: str, names: Sequence[str], port: int) -> str:
    """The line that makes a host read the probe and answer it."""
    command = shlex.join([python, "-", str(port), *names])
    return f"cd {shlex.quote(folder)} || exit {NO_FOLDER}; exec {command}"


def check(asked: Sequence[Asked]) -> None:
    """Nothing; UserError with what is wrong with each host."""
    if shutil.which("ssh") is None:
        raise UserError("there is no ssh on this machine", "launch.kind", "install OpenSSH's client")
    with ThreadPoolExecutor(len(asked)) as pool:
        found = list(pool.map(_problems, asked))
    if problems := [problem for some in found for problem in some]:
        raise UserError(problems)


def _problems(asked: Asked) -> list[Problem]:
    text = Path(probe.__file__).read_text(encoding="utf-8")
    try:
        done = subprocess.run(
            asked.command, input=text, capture_output=True, text=True, timeout=ANSWER_SECONDS, start_new_session=True,
            errors="replace", check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        what = f"{asked.host} did not answer within {ANSWER_SECONDS:.0f} s"
        return [Problem(what, f"{HOSTS}: {asked.host}", f"look whether ssh {asked.host} works by hand")]
    if done.returncode != 0:
        return [refused(asked.host, done.returncode, done.stderr)]
    return list(shortcomings(asked, json.loads(done.stdout.strip().splitlines()[-1])))


def refused(host: str, exit_status: int, said: str) -> Problem:
    """What is wrong with a host that did not answer the probe: ssh or a shell there has said it."""
    last = (said.strip().splitlines() or [f"ssh ended with {exit_status}"])[-1]
    where = f"{HOSTS}: {host}"
    if exit_status == NO_FOLDER:
        return Problem(f"{host} has no such folder: {last}", f"launch.folder on {host}", "make it there, or set it")
    if exit_status in NO_PROGRAM:
        fix = "name the Python there that has Velocity, the same on all hosts"
        return Problem(f"{host} has no such Python: {last}", f"launch.python on {host}", fix)
    for words, (what, fix) in REFUSALS.items():
        if words in said:
            return Problem(f"{what.format(host=host)}: {last}", where, fix.format(host=host))
    if exit_status == CONNECTION:
        return Problem(f"{host} cannot be reached: {last}", where, f"look whether ssh {host} works by hand")
    fix = "name a Python that has Velocity, the same on all hosts"
    return Problem(f"the Python of {host} does not work: {last}", f"launch.python on {host}", fix)


def shortcomings(asked: Asked, answer: dict[str, Any]) -> Iterator[Problem]:
    """What is wrong with a host that has answered."""
    host, version = asked.host, answer["version"]
    if version is None:
        fix = "install it there, or name the Python that has it"
        yield Problem(f"the Python of {host} has no Velocity", f"launch.python on {host}", fix)
    elif version != __version__:
        what = f"{host} has Velocity {version}, and this machine {__version__}"
        yield Problem(what, f"launch.python on {host}", "install the same on all of them")
    if answer["taken"]:
        what = f"port {asked.port} of {host} is taken: {answer['taken']}"
        yield Problem(what, "launch.port", "give a free one; each job that runs at the same time needs its own")
    for name in answer["unknown"]:
        fix = f"add {name} to /etc/hosts or the name service there, or name hosts by their addresses"
        yield Problem(f"{host} does not know the host {name}", f"{HOSTS}: {name}", fix)
