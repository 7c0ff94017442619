"""One rank of a job: how it is asked to stop, and how it says that it was done, was stopped, or why it failed."""

from __future__ import annotations

import errno
import faulthandler
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ahead import done_ahead
from tests.running import claimed, planned, prepare_folder
from velocity.distributed import comm, failure, pulse
from velocity.distributed.comm import Ranks
from velocity.errors import InterruptedRun
from velocity.process import STOPS
from velocity.runs import rank
from velocity.runs.folder import RunFolder

Failed = Callable[[str], tuple[int, str, RunFolder]]


@pytest.fixture(name="failed", scope="module")
def _failed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Failed]:
    """A real rank on two run folders that are not whole."""
    folder = tmp_path_factory.mktemp("failed")
    torn = prepare_folder(folder / "job without an environment")
    claimed(planned(torn, torn / "run", "launch.processes=1", "strategy.zero=2")).environment.unlink()
    (folder / "no job" / "run").mkdir(parents=True)

    def start(name: str) -> tuple[int, str, RunFolder]:
        run = RunFolder(folder / name / "run")
        node = [sys.executable, "-m", "velocity.distributed.node", "1", str(run.failures)]
        command = [*node, "velocity.training.run", str(run.path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        return done.returncode, done.stderr, run

    with done_ahead({name: partial(start, name) for name in ("no job", "job without an environment")}) as failed:
        yield failed


def test_a_rank_that_is_given_wrong_input_says_so_without_a_traceback(failed: Failed):
    status, said, run = failed("no job")
    assert status == 2, said
    cause = failure.cause(run.failures)
    assert cause is not None
    assert (cause["rank"], cause["exit_status"], cause["trace"]) == (0, 2, "")
    assert cause["what"].startswith("cannot read the job file: ")
    assert "Traceback" not in said


def test_a_rank_that_fails_unexpectedly_keeps_its_traceback_for_those_who_ask(failed: Failed):
    status, said, run = failed("job without an environment")
    assert status == 1, said
    cause = failure.cause(run.failures)
    assert cause is not None
    assert cause["what"].startswith("No such file or directory\n  where: ")
    assert f", rank 0 on {pulse.host()}, starting\n" in cause["what"]
    assert "Traceback" in cause["trace"] and "environment.json" in cause["trace"]
    assert "Traceback" not in said
    assert json.loads(json.dumps(cause)) == cause


@pytest.fixture(name="work_as")
def _work_as(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[int, RunFolder]]]:
    """Does some work as a rank, in this process and without others: its exit status, and the run folder."""
    for name in ("die_with_parent", "quieten"):
        monkeypatch.setattr(rank, name, lambda: None)
    monkeypatch.setattr(comm, "start", lambda ranks: None)
    run = RunFolder(tmp_path)
    handlers = {number: signal.getsignal(number) for number in (*STOPS, pulse.STACK_SIGNAL)}

    def start(work: Callable[[Callable[[], bool]], Any], number: int = 0) -> tuple[int, RunFolder]:
        monkeypatch.setattr(comm, "from_environment", lambda: Ranks(number, number, 2))
        return rank.as_rank(str(tmp_path), lambda _, ranks, stopping: work(stopping), "batch.micro: 1"), run

    yield start
    for number, handler in handlers.items():
        signal.signal(number, handler)
    faulthandler.enable(2)  # as pytest had it


WorkAs = Callable[..., tuple[int, RunFolder]]


def raising(error: BaseException) -> Callable[[Callable[[], bool]], None]:
    def work(_: Callable[[], bool]) -> None:
        raise error

    return work


def test_a_rank_whose_work_is_done_ends_with_0_and_without_a_word(work_as: WorkAs):
    status, run = work_as(lambda stopping: None)
    assert (status, failure.cause(run.failures), run.status()) == (0, None, {"state": "new"})


@pytest.mark.parametrize("number", STOPS)
def test_a_rank_that_is_asked_to_stop_goes_on_and_knows_it(work_as: WorkAs, number: int):
    asked: list[bool] = []

    def work(stopping: Callable[[], bool]) -> None:
        asked.append(stopping())
        os.kill(os.getpid(), number)
        asked.append(stopping())

    assert work_as(work)[0] == 0
    assert asked == [False, True]
    assert signal.getsignal(number) == signal.SIG_IGN, "what comes while it ends does not change its exit status"


@pytest.mark.parametrize(("number", "state"), [(0, "interrupted"), (1, "new")])
def test_of_ranks_that_stopped_the_first_says_so_and_none_has_failed(work_as: WorkAs, number: int, state: str):
    status, run = work_as(raising(InterruptedRun("stopped after step 3, and saved")), number)
    assert status == 75
    assert run.status() == (
        {"state": state, "why": "stopped after step 3, and saved"} if number == 0 else {"state": state}
    )
    assert failure.cause(run.failures) is None


@pytest.mark.parametrize(
    ("error", "whose"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "GPU's"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), "host's"),
        (MemoryError(), "host's"),
    ],
)
def test_where_memory_is_full_the_settings_of_this_kind_of_job_are_named(work_as: WorkAs, error: Any, whose: str):
    status, run = work_as(raising(error), 1)
    cause = failure.cause(run.failures)
    assert status == 1 and cause is not None
    assert cause["what"].splitlines() == [
        f"the {whose} memory is full", f"  where: rank 1 on {pulse.host()}, starting", "  fix:   batch.micro: 1",
    ]  # fmt: skip
    assert (cause["trace"], cause["kind"]) == ("", "MemoryFull")


def test_a_failure_names_the_step_and_the_records_that_the_rank_was_working_on(work_as: WorkAs):
    def work(_: Callable[[], bool]) -> None:
        pulse.at(12, pulse.Place.LEARNS, "learning", ["a:1", "a:2", "a:3", "a:4", "a:5"])
        raise IndexError("index out of range in self\nand much more of it\nin many lines")

    status, run = work_as(work, 1)
    cause = failure.cause(run.failures)
    assert status == 1 and cause is not None
    assert cause["what"].splitlines() == [
        "IndexError: index out of range in self",
        f"  where: rank 1 on {pulse.host()}, step 12, records a:1, a:2, a:3 (2 more)",
        "  fix:   --debug shows the traceback",
    ]
    assert (cause["step"], cause["records"]) == (12, ["a:1", "a:2", "a:3", "a:4", "a:5"])
    assert "in many lines" in cause["trace"]
    assert (cause["peer"], cause["kind"]) == (False, "IndexError")


def test_a_rank_whose_peer_has_gone_says_that_it_only_followed(work_as: WorkAs):
    _, run = work_as(raising(RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer")), 0)
    cause = failure.cause(run.failures)
    assert cause is not None and cause["peer"]


def test_the_number_of_what_the_system_refused_is_kept(work_as: WorkAs):
    _, run = work_as(raising(OSError(errno.ENOSPC, "No space left on device", "/full")), 0)
    cause = failure.cause(run.failures)
    assert cause is not None
    assert (cause["errno"], cause["kind"], cause["peer"]) == (errno.ENOSPC, "OSError", False)


def test_a_defect_is_said_with_its_kind_and_its_place(work_as: WorkAs):
    status, run = work_as(raising(KeyError("layers")), 1)
    cause = failure.cause(run.failures)
    assert status == 1 and cause is not None
    assert cause["what"].startswith(f"KeyError: 'layers'\n  where: rank 1 on {pulse.host()}, starting\n")
    assert "Traceback" in cause["trace"]
