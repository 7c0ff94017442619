"""What a machine has, read from the system: cores, memory, bf16, GPUs as nvidia-smi lists them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from velocity.planner.hardware import Hardware, detect

A100 = ("NVIDIA A100-SXM4-80GB", 80.0, 8.0)
T4 = ("Tesla T4", 15.0, 7.5)


def test_a_machine_without_a_gpu_has_bf16_where_its_processor_has():
    assert Hardware(8, 32.0, cpu_bf16=True).bf16
    assert not Hardware(8, 32.0, cpu_bf16=False).bf16


def test_a_gpu_has_bf16_from_compute_capability_8_whatever_the_processor_has():
    assert Hardware(8, 32.0, cpu_bf16=False, gpus=(A100,)).bf16
    assert not Hardware(8, 32.0, cpu_bf16=True, gpus=(T4,)).bf16


def test_the_description_is_plain_enough_for_a_json_file():
    made = Hardware(8, 32.0, cpu_bf16=True, gpus=(A100,))
    assert json.loads(json.dumps(made.describe())) == {
        "cores": 8, "memory_gib": 32.0, "cpu_bf16": True, "gpus": [["NVIDIA A100-SXM4-80GB", 80.0, 8.0]],
    }  # fmt: skip


@pytest.fixture(name="no_gpu")
def _no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on the path; empty."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_cores_are_those_we_may_use_and_memory_is_the_systems(no_gpu: Path):
    kibibytes = int(re.findall(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())[0])
    found = detect()
    assert found.cores == len(os.sched_getaffinity(0))
    assert found.memory_gib == pytest.approx(kibibytes / 2**20, abs=0.06)  # rounded to a tenth
    assert found.gpus == ()


def test_a_process_bound_to_one_core_has_one(no_gpu: Path):
    ours = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(ours)})
    try:
        assert detect().cores == 1
    finally:
        os.sched_setaffinity(0, ours)


def put_nvidia_smi(folder: Path, answer: str, status: int = 0) -> None:
    """A program of that name that answers the query as the real one does."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '{answer}'\nexit {status}\n")
    program.chmod(0o755)


TWO = "0, GPU-5a, NVIDIA H100 80GB HBM3, 81559, 9.0\\n1, GPU-b7, Tesla T4, 15360, 7.5\\n"


@pytest.mark.parametrize(
    ("visible", "names"),
    [(["1"], ["Tesla T4"]), (["GPU-5a"], ["NVIDIA H100 80GB HBM3"]), ([], []), (["7"], []),
     (None, ["NVIDIA H100 80GB HBM3", "Tesla T4"])],
)  # fmt: skip
def test_a_gpu_that_is_not_visible_to_us_is_not_counted(no_gpu: Path, visible: list[str] | None, names: list[str]):
    put_nvidia_smi(no_gpu, TWO)
    assert [name for name, _, _ in detect(visible).gpus] == names


def test_each_gpu_is_listed_with_its_name_memory_and_capability(no_gpu: Path):
    put_nvidia_smi(no_gpu, TWO)
    # 81559 MiB / 1024 = 79.647… GiB, 15360 / 1024 = 15
    assert detect().gpus == (("NVIDIA H100 80GB HBM3", 81559 / 1024, 9.0), ("Tesla T4", 15.0, 7.5))


def test_a_driver_that_does_not_answer_is_no_gpu(no_gpu: Path):
    put_nvidia_smi(no_gpu, "NVIDIA-SMI has failed because it could not talk to the NVIDIA driver\\n", 9)
    assert detect().gpus == ()


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", None), ("100000 100000", 1), ("50000 100000", 1)])
def test_a_container_that_may_keep_fewer_cores_busy_has_fewer(
    no_gpu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int | None
):
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    monkeypatch.setattr("velocity.planner.hardware.CONTAINER_CORES", tmp_path / "cpu.max")
    assert detect().cores == (cores or len(os.sched_getaffinity(0)))


def test_a_container_has_the_memory_that_it_may_use(no_gpu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "memory.max").write_text(f"{2 * 1024**3}\n")
    monkeypatch.setattr("velocity.planner.hardware.CONTAINER_LIMIT", tmp_path / "memory.max")
    assert detect().memory_gib == 2.0


def test_a_gpu_whose_memory_the_driver_does_not_tell_shares_the_machines(no_gpu: Path):
    put_nvidia_smi(no_gpu, "0, GPU-5a, NVIDIA GB10, [N/A], 12.1\\n")
    found = detect()
    [(name, memory_gib, capability)] = found.gpus
    assert (name, capability) == ("NVIDIA GB10", 12.1)
    assert memory_gib == pytest.approx(found.memory_gib, abs=0.06)
