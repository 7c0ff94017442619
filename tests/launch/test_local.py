"""A job on this machine: the command, its environment, its exit status, and signals that reach it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands import processes_naming
from velocity.launch import local


@pytest.mark.parametrize("module", ["velocity.training.run", "velocity.inference.run"])
def test_the_command_starts_the_node_with_its_processes_the_module_of_a_rank_and_the_run_folder(module: str):
    assert local.render(module, Path("runs/sft"), Path("runs/sft/failures"), 4) == [
        sys.executable, "-m", "velocity.distributed.node", "4", "runs/sft/failures", module, "runs/sft",
    ]  # fmt: skip


@pytest.mark.parametrize(("processes", "threads"), [(1, "8"), (2, "4"), (3, "2"), (16, "1")])
def test_the_cores_are_shared_out_and_every_process_has_one(processes: int, threads: str):
    assert local.environment(processes, 8, gpus=False)["OMP_NUM_THREADS"] == threads


def test_a_processor_is_named_to_deepspeed_and_a_gpu_is_left_to_it():
    assert local.environment(1, 2, gpus=False)["DS_ACCELERATOR"] == "cpu"
    assert "DS_ACCELERATOR" not in local.environment(1, 2, gpus=True)


def test_what_lies_beside_the_interpreter_is_found_first(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/somewhere")
    assert local.environment(1, 1, gpus=True)["PATH"] == f"{Path(sys.executable).parent}{os.pathsep}/somewhere"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_the_exit_status_of_the_command_comes_back():
    assert local.run(python("raise SystemExit(7)"), {}) == (7, False)
    assert local.run(python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"), {}) == (-9, False)


def test_the_command_has_our_environment_and_what_is_added(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OURS", "3")
    code = "import os; raise SystemExit(int(os.environ['OURS']) + int(os.environ['ADDED']))"
    assert local.run(python(code), {"ADDED": "4"}).status == 7


# The command asks its parent, as a cluster would, to stop: what reaches the parent has to reach the command.
ASKS = """
import os, signal, sys, time
from velocity.process import hear_stops
heard = []
hear_stops(heard.append)
for count, name in enumerate({names}, 1):
    os.kill(os.getppid(), getattr(signal, name))
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and len(heard) < count:
        time.sleep(0.01)
sys.exit(40 + len(heard))
"""
RUNS = """
import signal
from velocity.launch import local
from velocity.process import STOPS
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is born deaf to it
before = [signal.getsignal(number) for number in STOPS]
ended = local.run({command!r}, {{}})
after = [signal.getsignal(number) for number in STOPS]
print(ended.status, ended.asked, [handler == signal.SIG_IGN for handler in after], before == after)
"""


def asked_by_its_command(names: list[str], code: str = ASKS) -> str:
    """What is said of a command that sends these signals to who started it."""
    runs = RUNS.format(command=python(code.format(names=names)))
    done = subprocess.run(python(runs), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("names", [["SIGTERM"], ["SIGINT"], ["SIGUSR1"], ["SIGUSR1", "SIGTERM"]])
def test_what_asks_us_to_stop_is_passed_on_and_the_command_answers_it_and_then_we_are_deaf(names: list[str]):
    assert asked_by_its_command(names) == f"{40 + len(names)} True [True, True, True] False\n"


def test_who_was_not_asked_to_stop_can_be_asked_by_others_later():
    assert asked_by_its_command([]) == "40 False [False, False, False] True\n"


@pytest.mark.parametrize("second", ["SIGTERM", "SIGINT"])
def test_the_second_time_the_command_and_what_it_started_are_gone_at_once(second: str):
    mark = f"deaf-{os.getpid()}-{second}"
    deaf = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)  # {mark}'])"
    begun = time.monotonic()
    said = asked_by_its_command(["SIGTERM", second], deaf + ASKS)
    took, left = time.monotonic() - begun, processes_naming(mark)
    for number in left:
        os.kill(number, signal.SIGKILL)
    assert said == "75 True [True, True, True] False\n"
    assert not left
    assert took < 10, "starting two interpreters included"


# The kernel gives a signal to another thread where the first one is busy with the signal before.
TO_A_THREAD = """
import signal, threading, time
from velocity.launch import local
def ask():
    time.sleep(1)
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
threading.Thread(target=ask).start()
print(local.run({command!r}, {{}}))
"""


def test_a_signal_that_another_thread_is_given_is_heard():
    waits = "import sys, time; from velocity.process import hear_stops; hear_stops(sys.exit); time.sleep(20)"
    done = subprocess.run(python(TO_A_THREAD.format(command=python(waits))), capture_output=True, text=True, timeout=60)
    assert done.stdout == "Ended(status=15, asked=True)\n", done.stderr


@pytest.mark.parametrize(("named", "gpus"), [("0,3", ["0", "3"]), ("GPU-5a, 1", ["GPU-5a", "1"]), ("", [])])
def test_the_gpus_that_we_may_use_are_those_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, named: str, gpus: list[str]
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert local.visible_gpus() == gpus


def test_without_a_word_of_the_environment_all_gpus_are_ours(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert local.visible_gpus() is None
