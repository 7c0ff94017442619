"""A job on this machine: the command, its environment, its exit status, and signals that reach it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

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
    assert local.run(python("raise SystemExit(7)"), {}) == 7
    assert local.run(python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"), {}) == -signal.SIGKILL


def test_the_command_has_our_environment_and_what_is_added(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OURS", "3")
    code = "import os; raise SystemExit(int(os.environ['OURS']) + int(os.environ['ADDED']))"
    assert local.run(python(code), {"ADDED": "4"}) == 7


# The command asks its parent, as a cluster would, to stop: what reaches the parent has to reach the command.
ASKS = """
import os, signal, sys, time
signal.signal(signal.{name}, lambda *_: sys.exit(42))
os.kill(os.getppid(), signal.{name})
time.sleep(20)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_that_asks_us_to_stop_is_passed_on_and_the_command_answers_it(name: str):
    code = (
        "import signal, sys; from velocity.launch import local\n"
        "before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]\n"
        f"status = local.run([sys.executable, '-c', {ASKS.format(name=name)!r}], {{}})\n"
        "after = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]\n"
        "print(status, before == after)"
    )
    done = subprocess.run(python(code), capture_output=True, text=True, timeout=60)
    assert done.stdout == "42 True\n", done.stderr


@pytest.mark.parametrize(("named", "gpus"), [("0,3", ["0", "3"]), ("GPU-5a, 1", ["GPU-5a", "1"]), ("", [])])
def test_the_gpus_that_we_may_use_are_those_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, named: str, gpus: list[str]
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert local.visible_gpus() == gpus


def test_without_a_word_of_the_environment_all_gpus_are_ours(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert local.visible_gpus() is None
