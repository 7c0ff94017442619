"""Training on a real Slurm of two hosts: stopped, put back, broken, it does what it does on one machine."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.commands import losses, step_lines, velocity
from tests.making import write_job
from tests.running import prepare_folder
from tests.slurm_jobs import PATIENCE_SECONDS, Job, ended
from tests.slurm_laboratory import Slurm, wait_until

STEPS, TOLERANCE = 300, 1e-5


@pytest.fixture(scope="module", name="prepared")
def _prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_folder(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module", name="alone")
def _alone(prepared: Path) -> list[tuple[int, float, float]]:
    """The losses of the job on one machine with two processes, undisturbed."""
    done = velocity("run", training_job(prepared, prepared / "alone", {"processes": 2}))
    assert done.returncode == 0, done.stderr
    return losses(prepared / "alone")


def training_job(
    inputs: Path, output: Path, launch: Mapping[str, Any], steps: int = STEPS, every: int = 10_000
) -> Path:
    return write_job(
        output.with_suffix(".yaml"), model=str(inputs / "model"), output=str(output), launch=dict(launch),
        data={"train": str(inputs / "train.jsonl"), "cache": str(inputs / "cache")}, duration={"steps": steps},
        batch={"rows": 8, "micro": 2}, strategy={"zero": 2, "precision": "fp32"}, checkpoint={"every": every},
    )  # fmt: skip


class Training(Job):
    """A job that trains, one process a node."""

    def __init__(self, cluster: Slurm, folder: Path, inputs: Path) -> None:
        super().__init__(cluster, folder)
        self.run_folder, self.inputs = folder / "trained", inputs
        self.file = folder / "trained.yaml"

    def write(
        self, launch: Mapping[str, Any] | None = None, *, steps: int = STEPS, every: int = 10_000, **_: Any
    ) -> None:
        nodes = {"kind": "slurm", "nodes": 2, "cpus_per_node": 1, "processes": 2, **(launch or {})}
        training_job(self.inputs, self.run_folder, nodes, steps, every)

    def until_step(self, step: int) -> None:
        wait_until(lambda: len(step_lines(self.run_folder)) >= step, f"step {step}", PATIENCE_SECONDS)

    def ranks(self, host: str) -> list[int]:
        """Ids of the processes that train on the host."""
        found = {
            pid: Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in self.cluster.processes(host)
        }
        return [pid for pid, line in found.items() if f"begin velocity.training.run {self.run_folder}" in line]


@pytest.fixture(name="training")
def _training(cluster: Slurm, tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Training]:
    monkeypatch.chdir(tmp_path)
    yield Training(cluster, tmp_path, prepared)
    cluster.clear()


def assert_same(run: Path, alone: list[tuple[int, float, float]]) -> None:
    """Every step once, with the losses and gradient norms of the undisturbed run."""
    found = losses(run)
    assert [step for step, *_ in found] == list(range(1, len(found) + 1))
    for (step, *one), (_, *other) in zip(found, alone, strict=False):
        assert one == pytest.approx(other, rel=TOLERANCE), f"step {step}"


@pytest.mark.slow
def test_two_nodes_train_as_one_machine_does(training: Training, alone: list[tuple[int, float, float]]):
    training.write(steps=40)
    done = training.run()
    assert done.returncode == 0, done.stderr
    assert len(losses(training.run_folder)) == 40
    assert_same(training.run_folder, alone)
    assert "on 2 nodes" in done.stderr and (training.run_folder / "model" / "config.json").exists()
    assert training.listed()["state"] == "complete"


@pytest.mark.slow
def test_at_its_time_limit_a_job_saves_is_put_back_and_ends_as_if_nothing_had_been(
    training: Training, alone: list[tuple[int, float, float]]
):
    training.write({"time": "1h"})
    running = training.start()
    training.until_step(5)
    ranks = [pid for name in training.cluster.names for pid in training.ranks(name)]
    assert len(ranks) == 2
    for pid in ranks:
        os.kill(pid, signal.SIGSTOP)  # so that it is not done before Slurm warns, which looks every 30 s
    training.cluster.slurm("scontrol", "update", f"JobId={training.id}", "TimeLimit=3")
    time.sleep(40)
    for pid in ranks:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: training.cluster.show(training.id).get("Restarts") == "1", "it is back", PATIENCE_SECONDS)
    training.cluster.slurm("scontrol", "update", f"JobId={training.id}", "TimeLimit=60")
    status, said = ended(running, 400)
    assert status == 0, said
    assert "the time is up; the job goes back into the queue" in said
    assert training.cluster.show(training.id)["Restarts"] == "1"
    assert len(losses(training.run_folder)) == STEPS
    assert_same(training.run_folder, alone)


@pytest.mark.slow
def test_a_cancelled_job_has_saved_and_the_same_command_goes_on(
    training: Training, alone: list[tuple[int, float, float]]
):
    training.write()
    running = training.start()
    training.until_step(5)
    assert training.cluster.velocity("cancel", training.place.name).returncode == 0
    status, said = ended(running)
    assert (status, "and saved" in said or "saved in" in said) == (75, True), said
    saved = len(losses(training.run_folder))
    assert 5 <= saved < STEPS
    again = training.run()
    assert again.returncode == 0, again.stderr
    assert len(losses(training.run_folder)) == STEPS
    assert_same(training.run_folder, alone)


@pytest.mark.slow
def test_a_rank_that_is_killed_on_the_second_host_is_named_wherever_one_looks(training: Training):
    training.write(steps=20_000)
    running = training.start()
    training.until_step(5)
    second = training.cluster.names[1]
    (rank,) = training.ranks(second)
    os.kill(rank, signal.SIGKILL)
    status, said = ended(running)
    assert status == 1
    logs = training.cluster.velocity("logs", training.place.name)
    assert logs.returncode == 1
    listed = training.listed()
    assert (listed["state"], listed["exit_status"]) == ("failed", 1)
    for text in (said, logs.stderr, listed["why"]):
        assert "a process was killed by SIGKILL" in text, text
        assert f"rank 1 on {second}" in text
    for name in training.cluster.names:
        assert not training.ranks(name), "nothing goes on"


@pytest.mark.slow
def test_when_a_host_dies_slurm_puts_the_job_back_and_it_goes_on_once_there_is_another(
    training: Training, alone: list[tuple[int, float, float]]
):
    first, second = training.cluster.names
    training.write(every=10)
    running = training.start()
    training.until_step(15)
    training.cluster.kill(second)
    wait_until(lambda: not training.ranks(first), "the other host's ranks have ended", PATIENCE_SECONDS)
    wait_until(lambda: training.cluster.show(training.id).get("Restarts") == "1", "it is back", PATIENCE_SECONDS)
    training.cluster.boot(second)
    status, said = ended(running, 400)
    assert status == 0, said
    assert len(losses(training.run_folder)) == STEPS
    assert_same(training.run_folder, alone)
