"""The node of a machine: its exit status is that of the first worker that failed, and a signal reaches the workers.

The workers are a few lines of Python that know no torch: a real torchrun agent starts them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.ahead import done_ahead
from tests.commands import processes_naming
from velocity.distributed import failure, pulse
from velocity.process import stops_wait

WORKER = """
import os, signal, sys, time
from pathlib import Path
from velocity.distributed import pulse
from velocity.process import hear_stops
heard = []

def main(place, wish):
    folder, rank = Path(place), int(os.environ["RANK"])
    def asked(number):
        heard.append(signal.Signals(number).name)
        (folder / f"asked-{rank}").write_text(" ".join(heard))
    hear_stops(asked)
    (folder / f"rank-{rank}").write_text(f"{os.environ['LOCAL_RANK']} of {os.environ['WORLD_SIZE']}")
    while len(list(folder.glob("rank-*"))) < 2:
        time.sleep(0.01)
    if wish == "fails" and rank == 1:
        return 3
    if wish == "killed" and rank == 1:
        pulse.begin(folder / "failures", rank)
        pulse.at(4, pulse.Place.LEARNS, "learning", ["a.jsonl:7"])
        os.kill(os.getpid(), signal.SIGKILL)
    deadline = time.monotonic() + 60
    while wish != "ends" and not heard and time.monotonic() < deadline:
        time.sleep(0.01)
    if wish.startswith("SIG"):
        time.sleep(1)  # it saves, and may hear more of it
        return 75
    return 0
"""


class Run:
    """A node with two workers, at its end: exit status, standard error, and what the workers wrote."""

    def __init__(self, folder: Path, wish: str) -> None:
        folder.mkdir()
        self.folder = folder
        (folder / "worker.py").write_text(WORKER)
        node = [sys.executable, "-m", "velocity.distributed.node", "2", str(folder / "failures")]
        command = [*node, "worker", str(folder), wish]
        environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        with stops_wait():  # as launch/local.py starts it
            process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        try:
            deadline = time.monotonic() + 60
            while wish.startswith("SIG") and len(list(folder.glob("rank-*"))) < 2 and time.monotonic() < deadline:
                time.sleep(0.02)
            for name in wish.split() if wish.startswith("SIG") else ():
                process.send_signal(getattr(signal, name))
                time.sleep(0.3)
            self.stderr = process.communicate(timeout=60)[1]
        finally:
            process.kill()
            process.wait()
        self.status = process.returncode
        self.wrote = {path.name: path.read_text() for path in folder.glob("*-?")}
        self.left = processes_naming(str(folder))


SIGNALS = ["SIGUSR1", "SIGINT SIGTERM SIGUSR1"]  # the last as where a cluster sends them to all processes
WISHES = ["ends", "fails", "killed", *SIGNALS]


Runs = Callable[[str], Run]


@pytest.fixture(name="runs", scope="module")
def _runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """The node, once with each kind of worker."""
    folder = tmp_path_factory.mktemp("node")
    with done_ahead({wish: partial(Run, folder / wish, wish) for wish in WISHES}) as runs:
        yield runs


def test_every_worker_knows_its_rank_and_a_good_end_is_0(runs: Runs):
    run = runs("ends")
    assert run.status == 0, run.stderr
    assert run.wrote == {"rank-0": "0 of 2", "rank-1": "1 of 2"}


def test_the_exit_status_of_a_worker_that_fails_becomes_the_nodes_and_the_other_is_stopped(runs: Runs):
    run = runs("fails")
    assert run.status == 3
    assert run.wrote["asked-0"] == "SIGTERM"
    assert run.stderr == "", "the worker said already why, where it could"


def test_a_worker_that_a_signal_killed_is_named_with_the_signal(runs: Runs):
    run = runs("killed")
    assert run.status == 1
    cause = failure.cause(run.folder / "failures")
    assert cause is not None and cause["rank"] == 1
    assert cause["what"].splitlines()[:2] == [
        "a process was killed by SIGKILL", f"  where: rank 1 on {pulse.host()}, step 4, records a.jsonl:7",
    ]  # fmt: skip
    assert (cause["killed"], cause["step"], cause["records"]) == (True, 4, ["a.jsonl:7"])


@pytest.mark.parametrize("names", SIGNALS)
def test_a_signal_that_asks_to_stop_reaches_every_worker_once_and_all_have_the_time_to_save(runs: Runs, names: str):
    run = runs(names)
    assert run.status == 75, run.stderr
    assert [run.wrote["asked-0"].split()[0], run.wrote["asked-1"].split()[0]] == [names.split()[0]] * 2
    assert run.stderr == ""


@pytest.mark.parametrize("wish", WISHES)
def test_no_process_is_left(runs: Runs, wish: str):
    assert runs(wish).left == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a machine another name")
def test_a_machine_whose_own_name_has_no_address_runs_its_workers(tmp_path: Path):
    (tmp_path / "worker.py").write_text("def main():\n    return 0\n")
    node = [sys.executable, "-m", "velocity.distributed.node", "1", str(tmp_path / "failures"), "worker"]
    renamed = ["unshare", "--uts", "sh", "-c", 'hostname no-such-machine.invalid && exec "$@"', "sh", *node]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(renamed, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
