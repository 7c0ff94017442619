"""Seconds of a step, by hand where a hand can, and which way they go where it cannot."""

from __future__ import annotations

from typing import Any

import pytest

from tests.planner.shapes import LLAMA_7B, SEVEN_BILLION, job
from velocity.planner.hardware import Hardware
from velocity.planner.machines import CORE_FLOPS, Cluster, parse_gpus, parse_instance
from velocity.planner.speed import Speed, rows_a_step, step_speed, token_flops

H100S = parse_gpus("8xH100-80")


def seconds(cluster: Cluster = H100S, processes: int = 8, **changes: Any) -> float:
    return step_speed(job(**changes), LLAMA_7B, cluster, processes).seconds


def test_a_token_takes_six_flop_a_parameter_and_attention_and_eight_where_layers_run_again():
    # forward 2 a parameter; attention 2 x layers x width x length / 2, for scores and for values
    forward = 2 * 7e9 + 2 * 32 * 4096 * 4096
    assert token_flops(job(strategy__recompute="none"), SEVEN_BILLION) == 3 * forward
    assert token_flops(job(strategy__recompute="layers"), SEVEN_BILLION) == 4 * forward


def test_an_adapter_saves_the_gradients_of_the_weights():
    plain = token_flops(job(strategy__recompute="none"), SEVEN_BILLION)
    assert token_flops(job(strategy__recompute="none", adapter={}), SEVEN_BILLION) == plain * 2 / 3


def test_a_step_is_arithmetic_beside_links_and_offload_behind_them():
    speed = Speed(compute=3.0, links=2.0, offload=1.0, tokens=400)
    assert (speed.seconds, speed.tokens_per_second, speed.bound) == (4.0, 100.0, "arithmetic")
    assert Speed(1.0, 2.0, 0.0, 1).bound == "links"


def test_a_processor_computes_at_its_cores_rate():
    cluster = Cluster(Hardware(2, 64.0, cpu_bf16=False))
    made = job(launch={"processes": 1}, strategy__recompute="none")
    tokens = 64 * 4096
    expected = tokens * token_flops(made, LLAMA_7B) / (2 * CORE_FLOPS)
    assert step_speed(made, LLAMA_7B, cluster, 1).seconds == pytest.approx(expected)


def test_more_rows_at_once_fill_a_gpu_better():
    assert seconds(batch__micro=8, data__sequence_length=256) < seconds(batch__micro=1, data__sequence_length=256)


def test_offloading_costs_time_and_a_disk_costs_more():
    host = {"optimizer": "cpu", "parameters": "none"}
    disk = {"optimizer": "nvme", "parameters": "none", "path": "/fast"}
    assert seconds() < seconds(strategy__offload=host) < seconds(strategy__offload=disk)


def test_stage_3_over_a_slow_network_waits_for_it_and_stage_1_waits_less():
    slow = parse_instance("ml.g5.12xlarge", nodes=4)
    three = step_speed(job(), LLAMA_7B, slow, 16)
    assert three.bound == "links"
    assert step_speed(job(strategy__zero=1), LLAMA_7B, slow, 16).seconds < three.seconds


def test_a_pipeline_of_few_micro_batches_waits_for_its_stages():
    # of 64 micro-batches each takes (64 + 7) / 64 of its time, of 8 (8 + 7) / 8
    def a_row(rows: int) -> float:
        batch = {"rows": rows, "micro": 1}
        speed = step_speed(job(strategy__pipeline=8, strategy__zero=1, batch=batch), LLAMA_7B, H100S, 8)
        return speed.compute / rows

    assert a_row(8) / a_row(64) == pytest.approx((15 / 8) / (71 / 64), rel=0.01)  # the step itself is once in each


def test_a_batch_in_tokens_counts_in_rows():
    assert rows_a_step(job(batch={"tokens": 8 * 4096, "micro": 1})) == 8
