"""`velocity run` with each way to spread a model: stopped and gone on, it ends with one process's losses and model."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.commands import losses, start, step_lines, velocity
from tests.making import write_job
from tests.running import prepare_folder

STEPS = 12
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds data, a tiny model, and the run of one process."""
    made = prepare_folder(tmp_path_factory.mktemp("strategies"), tied=True)
    done = velocity("run", _job(made, "alone", {"zero": 0}, 1))
    assert done.returncode == 0, done.stderr
    return made


def _logits(run: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(str(run / "model"))
    with torch.no_grad():
        logits: torch.Tensor = model(torch.arange(5, 45)[None]).logits
    return logits


@pytest.mark.parametrize("name", SPREADS)
def test_a_spread_run_that_is_stopped_goes_on_to_one_processs_losses_and_model(folder: Path, name: str) -> None:
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
    ours, alone = losses(run), losses(folder / "alone")
    assert [step for step, *_ in ours] == [step for step, *_ in alone]
    for one, other in zip(ours, alone, strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-5)
    torch.testing.assert_close(_logits(run), _logits(folder / "alone"), atol=1e-4, rtol=1e-4)
