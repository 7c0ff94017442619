"""An adapter as a user meets it: trained on two ranks, small on disk, resumed, reloaded, merged, gone on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.commands import losses, step_lines, velocity
from tests.making import write_job
from tests.running import prepare_folder

BASE: dict[str, Any] = {
    "strategy": {"zero": 3, "precision": "bf16"},
    "launch": {"processes": 2},
    "adapter": {"rank": 2, "kind": "dora"},
    "optimizer": {"learning_rate": 1e-2, "schedule": "constant", "warmup": 0},  # the same for a shorter run
    "duration": {"steps": 4},
    "checkpoint": {"every": 2},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of an adapter: two ranks, ZeRO 3, 16 bit, stopped half-way and gone on with."""
    folder = prepare_folder(tmp_path_factory.mktemp("adapter"), tied=True)
    job = write_job(folder / "job.yaml", **BASE)
    half = velocity("run", job, "duration.steps=2")
    assert half.returncode == 0, half.stderr
    done = velocity("run", job)
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in step_lines(folder / "run")] == [1, 2, 3, 4]
    return folder


def test_a_resumed_adapter_has_the_losses_of_one_that_was_never_stopped(trained: Path) -> None:
    job = write_job(trained / "whole.yaml", **BASE, output=str(trained / "whole"))
    done = velocity("run", job)
    assert done.returncode == 0, done.stderr
    assert losses(trained / "whole") == losses(trained / "run")


def test_checkpoints_hold_the_adapter_and_not_the_model(trained: Path) -> None:
    model = (trained / "model" / "model.safetensors").stat().st_size
    checkpoint = trained / "run" / "checkpoints" / "step-00000004"
    assert sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file()) < model


def test_peft_reloads_the_adapter_and_export_gives_the_same_logits(trained: Path) -> None:
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    done = velocity("export", trained / "run", trained / "exported")
    assert done.returncode == 0, done.stderr
    ids = torch.arange(12)[None]
    adapter = AutoPeftModelForCausalLM.from_pretrained(trained / "run" / "model", dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(trained / "model", dtype=torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(trained / "exported", dtype=torch.float32)
    with torch.no_grad():
        tuned, plain, exported = (model(input_ids=ids).logits for model in (adapter, base, merged))
    assert float((tuned - plain).abs().max()) > 0.01, "it has learned something"
    torch.testing.assert_close(exported, tuned, rtol=1e-5, atol=1e-5)
    again = velocity("export", trained / "run", trained / "exported")
    assert again.returncode == 2 and "is not empty" in again.stderr


@pytest.mark.slow
def test_a_job_goes_on_from_an_adapters_run_and_a_longer_one_is_merged_anew(trained: Path) -> None:
    job = write_job(trained / "next.yaml", model=str(trained / "run"), output=str(trained / "next"))
    done = velocity("run", job)
    assert done.returncode == 0, done.stderr
    assert (trained / "run" / "merged" / "model.safetensors").is_file()
    longer = velocity("run", trained / "job.yaml", "duration.steps=5")
    assert longer.returncode == 0, longer.stderr
    assert not (trained / "run" / "merged").exists(), "of the adapter as it was"


def test_an_adapter_where_nothing_fits_is_refused_before_a_step(trained: Path) -> None:
    job = write_job(trained / "wrong.yaml", adapter={"targets": "query"}, output=str(trained / "wrong"))
    done = velocity("run", job)
    assert done.returncode == 2
    assert "adapter.targets" in done.stderr and "q_proj" in done.stderr


@pytest.mark.slow
def test_an_adapter_beside_quantised_weights_trains_and_merges_into_the_whole_ones(trained: Path) -> None:
    job = write_job(
        trained / "quantised.yaml", adapter={"rank": 2, "bits": 4}, output=str(trained / "quantised"),
        strategy={"zero": 1, "precision": "bf16"}, optimizer={"learning_rate": 1e-2},
    )  # fmt: skip
    done = velocity("run", job)
    assert done.returncode == 0, done.stderr
    assert (trained / "quantised" / "model" / "adapter_model.safetensors").is_file()
    exported = velocity("export", trained / "quantised", trained / "quantised-merged")
    assert exported.returncode == 0, exported.stderr
    whole = (trained / "model" / "model.safetensors").stat().st_size
    assert (trained / "quantised-merged" / "model.safetensors").stat().st_size == pytest.approx(whole, rel=0.01)
