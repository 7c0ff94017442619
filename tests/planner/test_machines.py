"""Machines by name: the forms of --gpus, SageMaker's types as launch targets list them, and what is refused."""

from __future__ import annotations

import pytest

from velocity.errors import UserError
from velocity.planner.hardware import Hardware
from velocity.planner.machines import GPUS, INSTANCES, UNKNOWN, Cluster, gpu_named, parse_gpus, parse_instance


@pytest.mark.parametrize(
    ("text", "nodes", "gpus", "memory"),
    [("8xH100-80", 1, 8, 80.0), ("2x8xH200-141", 2, 8, 141.0), ("1xL4", 1, 1, 22.0), ("4xa100-40", 1, 4, 40.0)],
)
def test_gpus_are_a_count_a_name_and_their_memory(text: str, nodes: int, gpus: int, memory: float):
    found = parse_gpus(text)
    assert (found.nodes, len(found.hardware.gpus), found.hardware.gpus[0][1]) == (nodes, gpus, memory)
    assert len(found.all_gpus.gpus) == nodes * gpus
    assert found.hardware.bf16 and found.guesses, "host memory was not said"


def test_nodes_multiply():
    assert parse_gpus("2x8xH100", nodes=3).nodes == 6


@pytest.mark.parametrize("text", ["H100", "8", "0xH100", "8xH100-", "eight H100"])
def test_what_names_no_gpus_is_refused(text: str):
    with pytest.raises(UserError, match="names no GPUs"):
        parse_gpus(text)


def test_a_gpu_that_is_not_known_needs_its_memory_and_its_rates_are_called_a_guess():
    with pytest.raises(UserError, match="X9 is not known"):
        parse_gpus("8xX9")
    found = parse_gpus("8xX9-96")
    assert found.hardware.gpus[0][1] == 96.0 and "the rates of X9" in found.guesses
    assert found.gpu is UNKNOWN


def test_an_instance_type_has_its_gpus_memory_disk_and_network():
    found = parse_instance("ml.p5.48xlarge", nodes=2)
    assert (len(found.hardware.gpus), found.hardware.memory_gib, found.nodes) == (8, 2048, 2)
    assert found.network == 400e9  # 3200 Gbit/s
    assert found.nvme_gib == pytest.approx(28312, abs=1)  # 30.4 TB
    assert parse_instance("ml.p4d.24xlarge").hardware.gpus[0][1] == 40
    assert all(parse_instance(name).hardware.gpus for name in INSTANCES)


def test_an_unknown_instance_type_is_refused_with_those_that_are_known():
    with pytest.raises(UserError, match=r"ml.p3.2xlarge is not known") as caught:
        parse_instance("ml.p3.2xlarge")
    assert "ml.p5.48xlarge" in caught.value.problems[0].fix


def test_a_gpu_is_found_by_a_word_of_its_name():
    assert gpu_named("NVIDIA H100 80GB HBM3") is GPUS["H100"]
    assert gpu_named("NVIDIA A100-SXM4-80GB") is GPUS["A100"]
    assert gpu_named("NVIDIA L40S") is GPUS["L40S"]
    assert gpu_named("GeForce") is UNKNOWN


def test_machines_are_told_apart_by_gpu_or_by_cores():
    assert parse_gpus("8xH100-80").kind == parse_instance("ml.p5.48xlarge").kind == "gpu H100"
    assert Cluster(Hardware(8, 64.0, cpu_bf16=True)).kind == "cpu 8 cores bf16"
