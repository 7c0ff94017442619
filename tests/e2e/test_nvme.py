"""Weights and states on a disk: they really lie there while the job runs, and its results are the same."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.commands import losses, start, velocity
from tests.making import tiny_model_folder, write_job, write_jsonl
from tests.running import prepare_folder

HIDDEN = 1024  # a square matrix of it has 4 MiB in fp32: DeepSpeed swaps what has 1 MiB and more


def libaio() -> bool:
    """True where DeepSpeed can build its reader."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    return bool(AsyncIOBuilder().is_compatible(verbose=False))


def size(file: Path) -> int:
    """Bytes of a file; 0 where it has just been removed."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


@pytest.mark.slow  # the first time on a machine DeepSpeed compiles its reader, for minutes
@pytest.mark.skipif(not libaio(), reason="needs libaio, e.g. Debian's libaio-dev")
def test_weights_lie_on_the_disk_are_read_from_there_and_give_the_same_completions(tmp_path: Path):
    model = tiny_model_folder(tmp_path / "model", hidden=HIDDEN, heads=8, kv_heads=4, layers=3)
    write_jsonl(tmp_path / "prompts.jsonl", [{"text": f"check the length {i}"} for i in range(20)])
    job = {"task": "generate", "model": str(model), "output": str(tmp_path / "whole"),
           "data": {"prompts": str(tmp_path / "prompts.jsonl"), "cache": str(tmp_path / "cache")},
           "generation": {"max_new_tokens": 16, "engine": "transformers"}, "strategy": {"precision": "fp32"},
           "launch": {"processes": 1}}  # fmt: skip
    (tmp_path / "job.yaml").write_text(json.dumps(job), "utf-8")  # JSON is YAML
    assert velocity("run", tmp_path / "job.yaml").returncode == 0
    disk = tmp_path / "disk"
    streamed = start(
        "run", tmp_path / "job.yaml", f"output={tmp_path / 'streamed'}", "generation.engine=zero",
        "strategy.offload.parameters=nvme", f"strategy.offload.path={disk}",
    )  # fmt: skip
    most = 0
    while streamed.poll() is None:
        most = max(most, sum(map(size, disk.rglob("*.swp"))))
        time.sleep(0.05)
    assert streamed.stderr is not None
    assert streamed.wait() == 0, streamed.stderr.read()
    streamed.stderr.close()
    # of three layers: query and output 1024 x 1024, key and value half of it, three maps of 1024 x 2048
    matrices = 3 * (2 * HIDDEN**2 + 2 * HIDDEN**2 // 2 + 3 * 2 * HIDDEN**2) * 4
    assert most >= matrices
    assert list(disk.iterdir()) == [], "and nothing is left there"
    whole, other = ((tmp_path / name / "completions.jsonl").read_text("utf-8") for name in ("whole", "streamed"))
    assert whole == other
    assert len(whole.splitlines()) == 20


@pytest.mark.slow
@pytest.mark.skipif(not libaio(), reason="needs libaio, e.g. Debian's libaio-dev")
@pytest.mark.parametrize(
    "offload", [{"optimizer": "nvme", "parameters": "none"}, {"optimizer": "nvme", "parameters": "nvme"}]
)
def test_training_state_lies_on_the_disk_and_gives_the_same_losses(tmp_path: Path, offload: dict[str, str]):
    """The optimizer's state on the disk, without and with the weights; two ranks, ZeRO 3, stopped by nothing."""
    prepare_folder(tmp_path, hidden=HIDDEN, heads=8, kv_heads=4, layers=2)
    disk = tmp_path / "disk"

    def job(name: str, strategy: dict[str, Any], processes: int) -> Path:
        return write_job(
            tmp_path / f"{name}.yaml",
            output=str(tmp_path / name),
            optimizer={"kind": "adamw", "learning_rate": 1e-4},
            duration={"steps": 4},
            strategy={"precision": "fp32", **strategy},
            launch={"processes": processes},
            batch={"rows": 4, "micro": 2},
        )

    alone = velocity("run", job("alone", {"zero": 0}, 1))
    assert alone.returncode == 0, alone.stderr
    swapped = start("run", job("swapped", {"zero": 3, "offload": {**offload, "path": str(disk)}}, 2))
    most = 0
    while swapped.poll() is None:
        most = max(most, sum(map(size, disk.rglob("*.swp"))))
        time.sleep(0.05)
    assert swapped.stderr is not None
    assert swapped.wait() == 0, swapped.stderr.read()
    swapped.stderr.close()
    # two layers' matrices as in the test above; of each value the fp32 weight and two moments
    assert most >= 2 * (2 * HIDDEN**2 + 2 * HIDDEN**2 // 2 + 3 * 2 * HIDDEN**2) * 4 * 3
    assert list(disk.iterdir()) == [], "and nothing is left there"
    for ours, theirs in zip(losses(tmp_path / "swapped"), losses(tmp_path / "alone"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(not libaio(), reason="needs libaio, e.g. Debian's libaio-dev")
def test_what_lay_on_the_disk_goes_on_from_a_checkpoint_there_and_in_memory(tmp_path: Path):
    """Killed behind a save; then once more with the state on the disk, and from a copy of the run without."""
    prepare_folder(tmp_path, hidden=HIDDEN, heads=8, kv_heads=4, layers=2)
    offload = {"optimizer": "nvme", "parameters": "nvme", "path": str(tmp_path / "disk")}

    def job(name: str, strategy: dict[str, Any]) -> Path:
        return write_job(
            tmp_path / f"{name}.yaml",
            output=str(tmp_path / name),
            optimizer={"kind": "adamw", "learning_rate": 1e-4},
            duration={"steps": 6},
            checkpoint={"every": 2},
            strategy={"precision": "fp32", "zero": 3, **strategy},
            launch={"processes": 2},
            batch={"rows": 4, "micro": 2},
        )

    undisturbed = velocity("run", job("undisturbed", {}))
    assert undisturbed.returncode == 0, undisturbed.stderr
    killed, run = start("run", job("killed", {"offload": offload})), tmp_path / "killed"
    while not (run / "checkpoints" / "step-00000002" / "COMMITTED").exists():
        assert killed.poll() is None, killed.stderr and killed.stderr.read()
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    shutil.copytree(run, tmp_path / "elsewhere")
    for done in (velocity("run", job("killed", {"offload": offload})), velocity("run", job("elsewhere", {}))):
        assert done.returncode == 0, done.stderr
    for name in ("killed", "elsewhere"):
        for ours, theirs in zip(losses(tmp_path / name), losses(tmp_path / "undisturbed"), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
