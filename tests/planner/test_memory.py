"""Bytes by hand, published facts, and what must never fall or rise: memory of a rank, without any measurement."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.planner.shapes import LLAMA_7B, LLAMA_70B, SEVEN_BILLION, job
from velocity.planner.hardware import GIB
from velocity.planner.memory import Parts, optimizer_bytes, peak, state_bytes
from velocity.planner.size import ModelSize

STAGES = (1, 2, 3)


def total(size: ModelSize, processes: int, **changes: Any) -> float:
    return peak(job(**changes), size, processes).device.total


def test_seven_billion_parameters_in_bf16_are_112_gb_on_a_rank_and_16_over_n_under_stage_3():
    for zero in STAGES:
        assert state_bytes(job(), SEVEN_BILLION, "bf16", zero, 1) == 112e9
    for processes in (2, 8, 64):
        assert state_bytes(job(), SEVEN_BILLION, "bf16", 3, processes) == 7e9 * 16 / processes


def test_seventy_billion_need_more_than_eight_gpus_of_80_gb_and_less_than_sixteen_of_141():
    # 70.55e9 x 16 / 8 = 141 GB of state a rank alone, and half of it on 16
    assert total(LLAMA_70B, 8) > 141e9 > 80 * GIB
    assert total(LLAMA_70B, 16) < 141 * GIB
    assert total(LLAMA_70B, 8, strategy__offload={"optimizer": "cpu"}) < 80 * GIB


@pytest.mark.parametrize("recompute", ["none", "layers"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("zero", STAGES)
def test_memory_never_falls_when_sequence_batch_or_model_grow(zero: int, precision: str, recompute: str):
    plain = {"strategy__zero": zero, "strategy__precision": precision, "strategy__recompute": recompute}
    lengths = [total(LLAMA_7B, 8, **plain, data__sequence_length=2**power) for power in range(5, 18)]
    micros = [total(LLAMA_7B, 8, **plain, batch__micro=micro) for micro in range(1, 65)]
    deeper = [replace(LLAMA_7B, parameters=LLAMA_7B.parameters + n * LLAMA_7B.layer, layers=32 + n) for n in range(40)]
    wider = [replace(LLAMA_7B, vocabulary=n * 1000, parameters=LLAMA_7B.parameters + n * 8192) for n in range(1, 300)]
    for grown in (lengths, micros, *([total(size, 8, **plain) for size in sizes] for sizes in (deeper, wider))):
        assert all(one <= other * (1 + 1e-12) for one, other in zip(grown, grown[1:], strict=False))


@pytest.mark.parametrize("offload", [{}, {"optimizer": "cpu"}])
@pytest.mark.parametrize("recompute", ["none", "layers"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_memory_never_rises_with_a_higher_stage_or_more_ranks(precision: str, recompute: str, offload: dict[str, str]):
    places = {"optimizer": "none", "parameters": "none", **offload}
    plain = {"strategy__precision": precision, "strategy__recompute": recompute, "strategy__offload": places}
    for processes in (2, 3, 8, 64, 512):
        by_stage = [total(LLAMA_7B, processes, **plain, strategy__zero=zero) for zero in STAGES]
        assert by_stage == sorted(by_stage, reverse=True), processes
    for zero in STAGES:
        by_ranks = [total(LLAMA_7B, ranks, **plain, strategy__zero=zero) for ranks in (2, 3, 4, 8, 16, 64, 512)]
        assert by_ranks == sorted(by_ranks, reverse=True), zero


def test_recomputation_offloading_and_16_bit_take_less():
    kept = total(LLAMA_7B, 8, strategy__recompute="none")
    assert total(LLAMA_7B, 8) < kept
    assert total(LLAMA_7B, 8, strategy__zero=1, strategy__precision="fp32") > total(LLAMA_7B, 8, strategy__zero=1)
    away: dict[str, Any] = {"strategy__offload": {"optimizer": "cpu", "parameters": "cpu"}}
    assert total(LLAMA_7B, 8, **away) < total(LLAMA_7B, 8)


def test_what_leaves_the_device_is_in_host_memory():
    # 12 bytes of state and 4 of gradients a parameter, an eighth of them a rank, and what goes back in 16 bit
    found = peak(job(strategy__offload={"optimizer": "cpu", "parameters": "none"}), SEVEN_BILLION, 8)
    assert found.device.optimizer == found.device.gradients == 0
    assert found.host.optimizer == 7e9 * 12 / 8 and found.host.gradients == 7e9 * 4 / 8
    assert found.nvme == 0


def test_what_leaves_for_the_disk_is_on_the_disk():
    places = {"optimizer": "nvme", "parameters": "nvme", "path": "/fast"}
    found = peak(job(strategy__offload=places), SEVEN_BILLION, 8)
    assert found.nvme == 7e9 * (12 + 2) / 8
    assert found.host.optimizer == found.host.parameters == 0


def test_half_of_the_optimizer_stays_with_a_ratio_of_half():
    places = {"optimizer": "cpu", "parameters": "none", "ratio": 0.5}
    found = peak(job(strategy__offload=places), SEVEN_BILLION, 8)
    assert found.device.optimizer == found.host.optimizer == 7e9 * 12 / 8 / 2


def test_ranks_that_share_a_model_hold_a_part_of_it():
    split = peak(job(strategy__tensor=8, strategy__zero=1), LLAMA_70B, 8).device
    assert split.parameters == pytest.approx(LLAMA_70B.parameters * 2 / 8)
    assert split.optimizer == pytest.approx(LLAMA_70B.parameters * 12 / 8)


def test_ranks_that_share_a_sequence_hold_a_part_of_its_activations():
    alone = peak(job(data__sequence_length=131072), LLAMA_7B, 8).device
    shared = peak(job(data__sequence_length=131072, strategy__sequence=8), LLAMA_7B, 8).device
    assert shared.activations < alone.activations / 7
    assert shared.optimizer == alone.optimizer, "ZeRO spreads over all of them"


@pytest.mark.parametrize(
    ("optimizer", "bytes_each"),
    # two moments of 4 bytes; two of a byte with a scale of 4 bytes for 256; one moment; none
    [({}, 8), ({"kind": "adamw_8bit"}, 2 + 8 / 256), ({"kind": "lion"}, 4), ({"kind": "sgd"}, 0),
     ({"kind": "sgd", "momentum": 0.9}, 4)],
)  # fmt: skip
def test_an_optimizer_has_the_state_of_its_kind(optimizer: dict[str, Any], bytes_each: float):
    made = job(optimizer={"learning_rate": 1e-4, **optimizer})
    assert optimizer_bytes(made.optimizer, LLAMA_7B, 4) == bytes_each


def test_muon_has_one_moment_for_the_layers_and_two_for_the_rest():
    found = optimizer_bytes(
        job(optimizer={"kind": "muon", "learning_rate": 1e-3, "gradient_clipping": 0}).optimizer, LLAMA_7B, 4
    )
    outside = 2 * 32000 * 4096 / LLAMA_7B.parameters
    assert found == pytest.approx(4 + 4 * outside)


def test_states_in_bf16_are_half_of_those_in_fp32():
    assert state_bytes(job(strategy__states="bf16"), SEVEN_BILLION, "bf16", 3, 1) == 7e9 * (2 + 2 + 2 + 4)


def test_parts_add_up_and_are_scaled_one_by_one():
    parts = Parts(parameters=1, gradients=2, activations=3, allowance=4)
    assert parts.total == 10
    assert parts.scaled({"activations": 2, "speed": 9}).total == 13
    assert parts.describe()["activations"] == 3


def test_a_processor_sees_of_a_bucket_what_is_written():
    small = ModelSize(1_000_000, 2, 64)
    gpu, cpu = (peak(job(strategy__zero=1), small, 2, gpu=gpu).device.buffers for gpu in (True, False))
    assert gpu - cpu == (500_000_000 - 1_000_000) * 2
