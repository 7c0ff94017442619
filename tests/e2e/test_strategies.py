"""`velocity run` with each way to spread a model: stopped and gone on, it ends with one process's losses and model."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.ahead import done_ahead
from tests.commands import losses, start, step_lines, velocity
from tests.making import write_job
from tests.running import prepare_folder

STEPS = 20
SPREADS: dict[str, dict[str, Any]] = {
    "sequence": {"sequence": 2, "zero": 3},
    "tensor": {"tensor": 2, "zero": 1},
    "pipeline": {"pipeline": 2, "zero": 1},
    "offload": {"zero": 3, "offload": {"optimizer": "cpu", "parameters": "cpu"}, "recompute": "layers"},
}


def _job(folder: Path, name: str, strategy: dict[str, Any], processes: int) -> Path:
    return write_job(
        folder / f"{name}.yaml",
        output=str(folder / name),
        optimizer={"kind": "adamw", "learning_rate": 1e-3, "warmup": 0.1},
        duration={"steps": STEPS},
        strategy={"precision": "fp32", **strategy},
        launch={"processes": processes},
        batch={"rows": 8, "micro": 2},
    )


def alone(folder: Path) -> None:
    """The run of one process."""
    done = velocity("run", _job(folder, "alone", {"zero": 0}, 1))
    assert done.returncode == 0, done.stderr


def stopped_and_gone_on(folder: Path, name: str) -> None:
    """The spread job, to its end."""
    job, run = _job(folder, name, SPREADS[name], 2), folder / name
    process = start("run", job)
    while not step_lines(run) or step_lines(run)[-1]["step"] < 3:
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75
    assert step_lines(run)[-1]["step"] < STEPS
    done = velocity("run", job)
    assert done.returncode == 0, done.stderr


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds data and a tiny model."""
    return prepare_folder(tmp_path_factory.mktemp("strategies"), tied=True)


@pytest.fixture(name="jobs", scope="module")
def _jobs(folder: Path) -> Iterator[Callable[[str], None]]:
    spread = {name: partial(stopped_and_gone_on, folder, name) for name in SPREADS}
    with done_ahead({"alone": partial(alone, folder), **spread}) as jobs:
        yield jobs


def _logits(run: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(str(run / "model"))
    with torch.no_grad():
        logits: torch.Tensor = model(torch.arange(5, 45)[None]).logits
    return logits


@pytest.mark.parametrize("name", SPREADS)
def test_a_spread_run_that_is_stopped_goes_on_to_one_processs_losses_and_model(
    folder: Path, jobs: Callable[[str], None], name: str
) -> None:
    jobs("alone")
    jobs(name)
    ours, theirs = losses(folder / name), losses(folder / "alone")
    assert [step for step, *_ in ours] == [step for step, *_ in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-5)
    torch.testing.assert_close(_logits(folder / name), _logits(folder / "alone"), atol=1e-4, rtol=1e-4)
