"""What every plan chooses alike, by hand: processes, precision, and the memory of each process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.making import generate_data, job_data
from velocity.config.base import Mark
from velocity.config.job import Job
from velocity.config.load import job_of
from velocity.errors import UserError
from velocity.planner.device import Precision, choose_precision, choose_processes, device_bytes
from velocity.planner.hardware import GIB, Hardware
from velocity.planner.machines import Cluster

CPU = Hardware(8, 64.0, cpu_bf16=False)
CPU_BF16 = Hardware(8, 64.0, cpu_bf16=True)
EIGHT_GPUS = Hardware(64, 512.0, cpu_bf16=True, gpus=(("NVIDIA H100 80GB HBM3", 80.0, 9.0),) * 8)
OLD_GPU = Hardware(8, 64.0, cpu_bf16=True, gpus=(("Tesla T4", 15.0, 7.5),))


@pytest.fixture(name="job", params=[job_data, generate_data])
def _job(request: pytest.FixtureRequest) -> Job:
    """One of each class."""
    job: Job = job_of(request.param(Path("x")), Mark("job.yaml"))
    return job


def on(job: Job, processes: int) -> Job:
    return job.model_copy(update={"launch": job.launch.model_copy(update={"processes": processes})})


def test_a_process_a_gpu_and_one_on_a_machine_without(job: Job):
    assert choose_processes(job, Cluster(EIGHT_GPUS)) == (8, "one a GPU")
    assert choose_processes(job, Cluster(OLD_GPU))[0] == 1
    count, why = choose_processes(job, Cluster(CPU))
    assert count == 1 and "all cores" in why


def test_processes_that_were_asked_for_are_taken_without_a_reason(job: Job):
    assert choose_processes(on(job, 3), Cluster(EIGHT_GPUS)) == (3, "")


def test_more_processes_than_gpus_are_refused(job: Job):
    with pytest.raises(UserError, match=r"launch.processes=9, but the machine has 8 GPU") as caught:
        choose_processes(on(job, 9), Cluster(EIGHT_GPUS))
    assert caught.value.problems[0].where == "launch.processes"
    assert choose_processes(on(job, 9), Cluster(CPU))[0] == 9


@pytest.mark.parametrize(
    ("hardware", "precision"), [(CPU, "fp32"), (CPU_BF16, "bf16"), (EIGHT_GPUS, "bf16"), (OLD_GPU, "fp16")]
)
def test_16_bit_is_chosen_where_the_hardware_multiplies_in_it(hardware: Hardware, precision: Precision):
    chosen, why = choose_precision("auto", hardware)
    assert chosen == precision and why


@pytest.mark.parametrize("asked", ["fp32", "bf16", "fp16"])
def test_a_precision_that_was_asked_for_is_taken_without_a_reason(asked: Precision):
    assert choose_precision(asked, EIGHT_GPUS) == (asked, "")


def test_fp16_is_refused_without_a_gpu():
    with pytest.raises(UserError, match="precision fp16 needs a GPU") as caught:
        choose_precision("fp16", CPU_BF16)
    assert "use auto, bf16 or fp32" in str(caught.value)


@pytest.mark.parametrize(
    ("hardware", "processes", "gibibytes"),
    [(EIGHT_GPUS, 8, 64.0), (OLD_GPU, 1, 12.0), (CPU, 1, 51.2), (CPU, 4, 12.8)],  # 80, 15, 64, 64 / 4; times 0.8
)
def test_a_process_has_four_fifths_of_its_gpu_or_of_its_share_of_the_machine(
    hardware: Hardware, processes: int, gibibytes: float
):
    assert device_bytes(hardware, processes) / GIB == pytest.approx(gibibytes)


def test_on_several_nodes_each_gpu_has_a_process_and_each_machine_without_one(job: Job):
    assert choose_processes(job, Cluster(EIGHT_GPUS, 2)) == (16, "one a GPU")
    assert choose_processes(job, Cluster(CPU, 3))[0] == 3


def test_processes_that_the_nodes_cannot_share_out_are_refused(job: Job):
    with pytest.raises(UserError, match="launch.processes=3 is not a multiple of the 2 nodes") as caught:
        choose_processes(on(job, 3), Cluster(CPU, 2))
    assert "use 2 or 4" in str(caught.value)
