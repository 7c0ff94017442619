"""A run that is asked to stop, however and whenever: it saves, exits with 75, and goes on as if nothing had been."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.commands import losses, processes_naming, start, step_lines, velocity
from tests.making import write_job
from tests.running import prepare_folder
from velocity.checkpoints.commit import committed, damage, step_of
from velocity.process import STOPS
from velocity.runs.folder import RunFolder

MANY, EVERY = 20_000, 7  # steps; none of the runs gets to the end of so many
PATIENCE_SECONDS = 240


@dataclass(frozen=True)
class Ended:
    """An attempt at its end."""

    status: int
    said: str
    seconds: float  # of the whole attempt
    leaving_seconds: float  # from the last signal on
    step: int  # the last one that it did
    saved: int  # the step of the newest checkpoint
    left: list[int]  # processes


@dataclass
class Disturbed:
    """A job that is started again and again."""

    job: Path
    run: RunFolder
    starting_seconds: float = 0.0  # of the slowest attempt, to its first step
    ended: dict[str, Ended] = field(default_factory=dict)

    @property
    def step(self) -> int:
        lines = step_lines(self.run.path)
        return int(lines[-1]["step"]) if lines else 0

    def ranks(self) -> list[int]:
        return sorted(processes_naming(f"begin velocity.training.run {self.run.path}"))

    def node(self) -> list[int]:
        return processes_naming(f"-m velocity.distributed.node 2 {self.run.failures}")

    def attempt(self, name: str, disturb: Callable[[subprocess.Popen[str]], None], *overrides: str) -> None:
        """The job is started, disturbed, and gone."""
        begun = time.monotonic()
        process = start("run", self.job, *overrides)
        try:
            disturb(process)
            sent = time.monotonic()
            said = process.communicate(timeout=PATIENCE_SECONDS)[1]
        finally:
            process.kill()
            process.wait()
        now, left = time.monotonic(), processes_naming(str(self.run.path))
        saved = max(map(step_of, committed(self.run.checkpoints)), default=0)
        self.ended[name] = Ended(process.returncode, said, now - begun, now - sent, self.step, saved, left)

    def wait_for(self, process: subprocess.Popen[str], what: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not what():
            assert process.poll() is None and time.monotonic() < deadline, process.stderr and process.stderr.read()
            time.sleep(0.02)

    def do_steps(self, process: subprocess.Popen[str], more: int = 3) -> None:
        """Wait until so many more steps are done."""
        begun, before = time.monotonic(), self.step
        self.wait_for(process, lambda: self.step > before)
        self.starting_seconds = max(self.starting_seconds, time.monotonic() - begun)
        self.wait_for(process, lambda: self.step >= before + more)


def made(folder: Path, name: str, steps: int = MANY, **sections: Any) -> Disturbed:
    job = write_job(
        folder / f"{name}.yaml",
        output=str(folder / name),
        optimizer={"kind": "adamw", "learning_rate": 1e-3, "warmup": 5},
        duration={"steps": steps},
        checkpoint={"every": EVERY, "keep": 2},
        strategy={"zero": 2, "precision": "fp32"},
        launch={"processes": 2},
        batch={"rows": 8, "micro": 2},
        **sections,
    )
    return Disturbed(job, RunFolder(folder / name))


@pytest.fixture(name="disturbed", scope="module")
def _disturbed(tmp_path_factory: pytest.TempPathFactory) -> Disturbed:
    """Stopped while it loads, by Slurm's warning to one rank, at once, by the clock, by a warning to the command."""
    run = made(prepare_folder(tmp_path_factory.mktemp("stop")), "disturbed")

    def while_it_loads(process: subprocess.Popen[str]) -> None:
        run.wait_for(process, lambda: len(run.ranks()) == 2)  # they import for seconds
        for number in [process.pid, *run.node(), *run.ranks()]:
            os.kill(number, signal.SIGTERM)

    def warn_one_rank(process: subprocess.Popen[str]) -> None:
        run.do_steps(process)
        os.kill(run.ranks()[1], signal.SIGUSR1)

    def insist(process: subprocess.Popen[str]) -> None:
        run.do_steps(process, EVERY + 1)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)

    def warn(process: subprocess.Popen[str]) -> None:
        run.do_steps(process)
        process.send_signal(signal.SIGUSR1)

    run.attempt("while it loads", while_it_loads)
    run.attempt("one rank", warn_one_rank)
    run.attempt("at once", insist)
    seconds = round(1.5 * run.starting_seconds + 12)  # ten of them are for leaving
    run.attempt("by the clock", lambda process: None, f"duration.wall_clock={seconds}s")
    run.attempt("the command", warn)
    return run


POLITE = ("one rank", "by the clock", "the command")


@pytest.mark.parametrize("name", ["while it loads", *POLITE, "at once"])
def test_it_exits_with_75_says_how_to_go_on_and_leaves_no_process(disturbed: Disturbed, name: str):
    ended = disturbed.ended[name]
    assert ended.status == 75, ended.said
    assert ended.said.splitlines()[-1] == "  fix:   run the same command to go on"
    assert "Traceback" not in ended.said
    assert ended.left == []


@pytest.mark.parametrize("name", POLITE)
def test_it_says_after_which_step_and_has_saved_that_very_step(disturbed: Disturbed, name: str):
    ended = disturbed.ended[name]
    assert re.search(rf"error: stopped after step {ended.step}, and saved in \d+\.\d s", ended.said), ended.said
    assert ended.saved == ended.step


def test_while_it_loads_there_is_nothing_to_save(disturbed: Disturbed):
    assert "error: stopped while loading, before the first step\n" in disturbed.ended["while it loads"].said
    assert disturbed.ended["while it loads"].saved == 0


def test_the_second_signal_ends_it_at_once_and_says_where_it_goes_on(disturbed: Disturbed):
    before, ended = disturbed.ended["one rank"], disturbed.ended["at once"]
    assert f"error: stopped before it could save; the last whole checkpoint is of step {ended.saved}\n" in ended.said
    assert before.saved < ended.saved <= ended.step
    assert ended.leaving_seconds < 5, "two, where the machine is idle"


def test_the_clock_leaves_time_to_save_and_to_leave(disturbed: Disturbed):
    ended = disturbed.ended["by the clock"]
    assert "duration.wall_clock is nearly over" in ended.said
    assert ended.seconds < 1.5 * disturbed.starting_seconds + 12
    assert ended.step > disturbed.ended["at once"].saved, "it got on"


def test_every_checkpoint_is_whole(disturbed: Disturbed):
    assert [damage(folder) for folder in committed(disturbed.run.checkpoints)] == [None, None]


def test_the_losses_are_those_of_a_run_that_was_never_stopped(disturbed: Disturbed):
    ours = losses(disturbed.run.path)
    assert [step for step, *_ in ours] == list(range(1, disturbed.ended["the command"].step + 1))
    assert len(ours) > disturbed.ended["by the clock"].step > disturbed.ended["at once"].saved

    straight = made(disturbed.job.parent, "straight")

    def until_the_same_step(process: subprocess.Popen[str]) -> None:
        straight.do_steps(process, len(ours))
        process.send_signal(signal.SIGTERM)

    straight.attempt("until the same step", until_the_same_step)
    assert ours == losses(straight.run.path)[: len(ours)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_signals_of_every_kind_to_whichever_process_at_any_moment_change_nothing(tmp_path: Path, seed: int):
    choose = random.Random(seed)
    prepare_folder(tmp_path)
    runs = {
        name: made(tmp_path, name, 400, data={"eval": str(tmp_path / "train.jsonl"), "eval_every": 5})
        for name in ("straight", "stormy")
    }
    assert velocity("run", runs["straight"].job, timeout=PATIENCE_SECONDS).returncode == 0
    run = runs["stormy"]
    targets: dict[str, Callable[[int], list[int]]] = {
        "the command": lambda command: [command],
        "the node": lambda command: run.node(),
        "a rank": lambda command: run.ranks()[-1:],
        "all": lambda command: [command, *run.node(), *run.ranks()],
    }

    def storm(process: subprocess.Popen[str]) -> None:
        run.wait_for(process, run.node)  # what comes before is in test_tokenising.py
        if not run.starting_seconds:
            run.do_steps(process)
        time.sleep(choose.uniform(0, 1.5 * run.starting_seconds))
        number = choose.choice(STOPS)
        for target in targets[choose.choice(list(targets))](process.pid):
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                os.kill(target, number)

    for count in range(8):
        run.attempt(str(count), storm)
        ended = run.ended[str(count)]
        assert ended.status in (0, 75), ended.said
        assert ended.left == [] and "Traceback" not in ended.said
    done = velocity("run", run.job, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stderr
    assert losses(run.run.path) == losses(runs["straight"].run.path)
