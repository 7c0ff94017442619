"""What the planner chooses, by hand: bytes, precision, ZeRO stage, recomputation, rows at once, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.making import hollow_model_folder, job_data, write_job
from velocity.config.job import LoadedJob, flatten
from velocity.config.load import load_job
from velocity.config.training import TrainingJob
from velocity.errors import UserError
from velocity.planner.device import Precision
from velocity.planner.hardware import Hardware
from velocity.planner.machines import Cluster
from velocity.planner.memory import state_bytes
from velocity.planner.plan import Zero, plan_job, resolve, roomier, thriftier
from velocity.planner.size import ModelSize

CPU = Hardware(8, 64.0, cpu_bf16=False)
CPU_BF16 = Hardware(8, 64.0, cpu_bf16=True)
EIGHT_GPUS = Hardware(64, 512.0, cpu_bf16=True, gpus=(("NVIDIA H100 80GB HBM3", 80.0, 9.0),) * 8)
OLD_GPU = Hardware(8, 64.0, cpu_bf16=True, gpus=(("Tesla T4", 15.0, 7.5),))


ADAMW = {"learning_rate": 1e-4}


def planned(tmp_path: Path, hardware: Hardware, parameters: int | None, **sections: Any) -> LoadedJob:
    """A job's plan for a model of so many parameters; None: a model that is not here yet."""
    model = tmp_path / "model"
    shape = {k: sections.pop(k) for k in ("layers", "hidden") if k in sections}
    if parameters is not None:
        hollow_model_folder(model, parameters, **shape)
    sections = {"optimizer": ADAMW, **sections}
    return resolve(load_job(write_job(tmp_path / "job.yaml", **sections)), Cluster(hardware), model)


def state(size: ModelSize, precision: Precision, zero: Zero, processes: int, **sections: Any) -> float:
    """Bytes of a rank, for a job with these sections."""
    job = TrainingJob.model_validate({**job_data(Path("folder")), "optimizer": ADAMW, **sections})
    return state_bytes(job, size, precision, zero, processes)


@pytest.mark.parametrize(
    ("zero", "gigabytes"),
    # arXiv 1910.02054, figure 1: 7.5e9 parameters in 16 bit on 64 ranks. By hand: 7.5 x (2 + 2 + 12) = 120,
    # 7.5 x (2 + 2 + 12/64) = 31.4, 7.5 x (2 + 14/64) = 16.6, 7.5 x 16/64 = 1.9
    [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.9)],
)
def test_the_state_of_a_rank_in_16_bit_is_that_of_the_zero_paper(zero: Zero, gigabytes: float):
    assert state(ModelSize(7_500_000_000, 1, 1), "bf16", zero, 64) / 1e9 == pytest.approx(gigabytes, abs=0.05)


@pytest.mark.parametrize(
    ("zero", "a_parameter"),
    # weight, gradient, and of ZeRO a flat copy of the weights beside two moments; four ranks
    [(0, 16.0), (1, 4 + 4 + 12 / 4), (2, 4 + (4 + 12) / 4), (3, 20 / 4)],
)
def test_the_state_of_a_rank_in_fp32_has_a_second_copy_of_the_weights_under_zero(zero: Zero, a_parameter: float):
    assert state(ModelSize(100, 1, 1), "fp32", zero, 4) == 100 * a_parameter


@pytest.mark.parametrize(("precision", "a_parameter"), [("fp32", 20), ("bf16", 16), ("fp16", 16)])
@pytest.mark.parametrize("zero", [1, 2, 3])
def test_one_rank_saves_nothing_by_a_higher_stage(precision: Precision, a_parameter: int, zero: Zero):
    assert state(ModelSize(10, 1, 1), precision, zero, 1) == 10 * a_parameter


WIDE = ModelSize(1_000_000, layers=2, hidden=64)
# Rank 8 beside every linear map of a layer: 32 hidden widths of inputs and outputs. 8 x 2 x 64 x 32
ADAPTER = 32_768


@pytest.mark.parametrize(
    ("zero", "a_trained_one"),
    [(0, 2 + 2 + 12), (1, 2 + 2 + 12 / 4), (2, 2 + (2 + 12) / 4)],  # weight, gradient, optimizer; four ranks
)
def test_only_the_adapter_has_gradients_and_an_optimizers_state(zero: Zero, a_trained_one: float):
    found = state(WIDE, "bf16", zero, 4, adapter={"rank": 8})
    assert found == 2 * 1_000_000 + ADAPTER * a_trained_one


def test_stage_3_splits_the_frozen_weights_too():
    assert state(WIDE, "fp32", 3, 4, adapter={"rank": 8}) == (4 * 1_000_000 + 20 * ADAPTER) / 4


@pytest.mark.parametrize(("bits", "bytes_each"), [(None, 2), (8, 1), (4, 0.5)])
def test_bits_shrink_the_frozen_weights_and_not_the_adapter(bits: int | None, bytes_each: float):
    found = state(WIDE, "bf16", 1, 1, adapter={"rank": 8, "bits": bits})
    assert found == bytes_each * 1_000_000 + 16 * ADAPTER


@pytest.mark.parametrize("kind", ["dpo", "kto"])
def test_a_live_reference_is_a_second_model_split_over_the_ranks(kind: str):
    pairs: dict[str, Any] = {"task": "preference"}
    cached, live = (
        state(WIDE, "bf16", 1, 4, **pairs, preference={"kind": kind, "reference": where})
        for where in ("cached", "live")
    )
    assert cached == (2 + 2 + 12 / 4) * 1_000_000
    assert live == cached + 2 * 1_000_000 / 4


def test_the_live_reference_of_an_adapter_is_the_same_model_without_it():
    sections: dict[str, Any] = {"task": "preference", "preference": {"reference": "live"}, "adapter": {"rank": 8}}
    assert state(WIDE, "bf16", 1, 4, **sections) == state(WIDE, "bf16", 1, 4, adapter={"rank": 8})


def strategy(loaded: LoadedJob) -> tuple[Any, ...]:
    return loaded.job.launch.processes, loaded.job.strategy.precision, loaded.job.strategy.zero


def test_a_processor_without_bf16_trains_in_fp32_in_one_process_with_nothing_partitioned(tmp_path: Path):
    assert strategy(planned(tmp_path, CPU, 135_000_000)) == (1, "fp32", 0)


def test_a_processor_with_bf16_trains_in_bf16_under_stage_1_which_holds_master_weights(tmp_path: Path):
    assert strategy(planned(tmp_path, CPU_BF16, 135_000_000)) == (1, "bf16", 1)


def test_stage_0_that_was_asked_for_keeps_fp32_on_hardware_with_bf16(tmp_path: Path):
    assert strategy(planned(tmp_path, CPU_BF16, 135_000_000, strategy={"zero": 0})) == (1, "fp32", 0)


def test_a_gpu_without_bf16_trains_in_fp16(tmp_path: Path):
    assert strategy(planned(tmp_path, OLD_GPU, 135_000_000)) == (1, "fp16", 1)


@pytest.mark.parametrize(
    ("billions", "zero"),
    [
        # what a rank needs beside the 80 GiB's allowance, on 8 ranks in bf16, of weights, gradients and state alone:
        (0.135, 1),  # 0.135e9 x (2 + 2 + 12/8) = 0.7 GiB
        (7, 1),  # 7e9 x 5.5 = 35.9 GiB
        (13, 2),  # stage 1: 13e9 x 5.5 = 66.6 GiB leave less than a tenth; stage 2: 13e9 x (2 + 14/8) = 45.4 GiB
        (20, 3),  # stage 2: 20e9 x 3.75 = 69.8 GiB is too much
        (300, 3),  # 300e9 x 2 = 559 GiB fits nowhere: the stage that needs the least
    ],
)
def test_eight_gpus_partition_no_more_than_the_models_state_needs(tmp_path: Path, billions: float, zero: int):
    assert strategy(planned(tmp_path, EIGHT_GPUS, int(billions * 1e9))) == (8, "bf16", zero)


def test_several_processes_of_a_machine_without_a_gpu_share_its_memory(tmp_path: Path):
    # 64 GiB x 0.8 / 4 / 2 = 6.4 GiB a rank for the state. 1.2e9 parameters in fp32: stage 1 (4 + 4 + 8/4 = 10 bytes)
    # takes 11.2 GiB, stage 2 (4 + 12/4 = 7) 7.8 GiB, stage 3 (16/4 = 4) 4.5 GiB; alone it would be stage 0
    loaded = planned(tmp_path, CPU, 1_200_000_000, launch={"processes": 4})
    assert strategy(loaded) == (4, "fp32", 3)


def test_a_model_whose_size_is_not_known_is_planned_with_care(tmp_path: Path):
    loaded = planned(tmp_path, EIGHT_GPUS, None)
    assert strategy(loaded) == (8, "bf16", 2)
    assert (loaded.job.batch.micro, loaded.job.strategy.recompute) == (1, "layers")


@pytest.mark.parametrize(
    ("rows", "length", "processes", "micro"),
    [
        (64, 256, 1, 4),  # 1024 tokens at once are enough for a processor: 1024 / 256
        (64, 2048, 1, 1),  # a row at least
        (2, 256, 1, 2),  # no more than there are
        (4, 256, 2, 2),  # a rank's share of four
        (1, 256, 2, 1),  # fewer rows than ranks: still one
    ],
)
def test_a_processor_computes_about_a_thousand_tokens_at_once(
    tmp_path: Path, rows: int, length: int, processes: int, micro: int
):
    loaded = planned(
        tmp_path, CPU, 1_000_000, batch={"rows": rows}, data={"sequence_length": length},
        launch={"processes": processes},
    )  # fmt: skip
    assert loaded.job.batch.micro == micro


def test_a_gpu_computes_as_many_rows_as_fit_beside_the_models_state(tmp_path: Path):
    # 0.5e9 parameters on one H100, bf16, stage 1: 16 bytes each are 7.45 GiB, and the bucket 0.93. A token in a layer
    # keeps 8 x 1024 values of the norms, 5 x 1024 of attention, 4 x 4096 of the MLP: 29,696; a row of 4096 tokens
    # in 24 layers of 2 bytes 5.44 GiB. (80 - 1.5) / 1.08 - 8.4 = 64.3 GiB are left for it. 64.3 / 5.5 = 11.7
    one = Hardware(8, 64.0, cpu_bf16=True, gpus=(("NVIDIA H100 80GB HBM3", 80.0, 9.0),))
    loaded = planned(
        tmp_path, one, 500_000_000, layers=24, hidden=1024, batch={"rows": 512}, data={"sequence_length": 4096}
    )
    assert (loaded.job.batch.micro, loaded.job.strategy.recompute) == (11, "none")
    assert loaded.origins["batch.micro"].startswith("planner: 7.5 GiB of model state and ")


def test_activations_are_computed_again_where_not_one_row_of_them_fits(tmp_path: Path):
    # 3.5e9 parameters x 16 bytes = 52.15 GiB. A row keeps 29,696 x 4 values a token and layer, 32 layers of 8192 tokens
    # in 2 bytes are 58 GiB: too much, unless only a layer's input is kept: 4096 x 32 x 8192 x 2 = 2 GiB, and one layer
    # lives whole with its gradients, (118,784 + 36,864) x 8192 x 2 = 2.4 GiB. 78.5 / 1.08 - 53.1 = 19.6; / 4.6 = 4
    one = Hardware(8, 64.0, cpu_bf16=True, gpus=(("NVIDIA H100 80GB HBM3", 80.0, 9.0),))
    loaded = planned(
        tmp_path, one, 3_500_000_000, layers=32, hidden=4096, batch={"rows": 512}, data={"sequence_length": 8192}
    )
    assert (loaded.job.batch.micro, loaded.job.strategy.recompute) == (4, "layers")


@pytest.mark.parametrize(("kind", "micro"), [("dpo", 2), ("kto", 4)])
def test_a_row_of_pairs_holds_two_sequences_and_one_of_single_answers_one(tmp_path: Path, kind: str, micro: int):
    # 1024 tokens at once, in rows of 2 x 256 or of 256
    loaded = planned(
        tmp_path, CPU, 1_000_000, task="preference", preference={"kind": kind}, batch={"rows": 64},
        data={"sequence_length": 256},
    )  # fmt: skip
    assert loaded.job.batch.micro == micro


def test_a_gpu_computes_half_as_many_rows_of_pairs(tmp_path: Path):
    # as above: 64.3 GiB remain beside the state, and a row of 2 x 4096 tokens takes 10.9 of them. 64.3 / 10.9 = 5.9
    one = Hardware(8, 64.0, cpu_bf16=True, gpus=(("NVIDIA H100 80GB HBM3", 80.0, 9.0),))
    loaded = planned(
        tmp_path, one, 500_000_000, layers=24, hidden=1024, task="preference", batch={"rows": 512},
        data={"sequence_length": 4096},
    )  # fmt: skip
    assert loaded.job.batch.micro == 5


@pytest.mark.parametrize(
    ("bits", "zero"),
    # 300e9 parameters: 559 GiB in bf16, of which a rank holds an eighth under stage 3: 70 GiB; 140 GiB in 4 bit, which
    # fit no GPU whole, and for stage 3 they would
    [(None, {3}), (8, {1, 2}), (4, {1, 2})],
)
def test_quantised_weights_are_never_split(tmp_path: Path, bits: int | None, zero: set[int]):
    loaded = planned(tmp_path, EIGHT_GPUS, 300_000_000_000, adapter={"bits": bits})
    assert loaded.job.strategy.zero in zero


def test_an_adapter_trains_at_a_lower_stage_than_the_whole_model(tmp_path: Path):
    # 13e9 x 2 bytes = 24.2 GiB of frozen weights fit into a rank's 32 GiB whole; all parameters needed stage 3 above
    assert planned(tmp_path, EIGHT_GPUS, 13_000_000_000, adapter={}).job.strategy.zero == 1


def test_a_batch_in_tokens_counts_in_rows(tmp_path: Path):
    loaded = planned(tmp_path, CPU, 1_000_000, batch={"tokens": 512}, data={"sequence_length": 256})
    assert loaded.job.batch.micro == 2


@pytest.mark.parametrize("hardware", [CPU, CPU_BF16, EIGHT_GPUS, OLD_GPU])
@pytest.mark.parametrize("parameters", [None, 1000, 70_000_000_000])
def test_nothing_is_left_to_choose_and_every_choice_has_its_reason(
    tmp_path: Path, hardware: Hardware, parameters: int | None
):
    loaded = planned(tmp_path, hardware, parameters)
    chosen = {key for key, why in loaded.origins.items() if why.removeprefix("planner: ") not in ("", why)}
    assert chosen == {
        "launch.processes", "strategy.precision", "strategy.zero", "strategy.recompute", "batch.micro",
        "strategy.offload.optimizer", "strategy.offload.parameters", "strategy.tensor", "strategy.pipeline",
        "strategy.sequence", "checkpoint.background",
    }  # fmt: skip
    values = flatten(loaded.job.model_dump())
    assert not [key for key in values if values[key] == "auto" and key != "model.attention"]


def test_what_the_user_chose_stays_and_keeps_its_origin(tmp_path: Path):
    loaded = planned(
        tmp_path, CPU_BF16, 1_000_000, batch={"rows": 8, "micro": 3}, launch={"processes": 2},
        strategy={"zero": 3, "precision": "fp32", "recompute": "layers"},
    )  # fmt: skip
    assert strategy(loaded) == (2, "fp32", 3)
    assert (loaded.job.batch.micro, loaded.job.strategy.recompute) == (3, "layers")
    keys = ("batch.micro", "launch.processes", "strategy.zero", "strategy.precision", "strategy.recompute")
    said = {key: loaded.origins[key] for key in keys}
    assert all(where.startswith(f"{tmp_path}/job.yaml:") for where in said.values()), said


@pytest.mark.parametrize(
    ("hardware", "parameters", "background"),
    # a copy is 12 bytes a parameter, divided by the ranks: 1.5 GB a rank for 1e9 on eight GPUs
    [(CPU, 1_000_000, True), (CPU, 70_000_000_000, False), (EIGHT_GPUS, 1_000_000_000, True), (CPU, None, False)],
)
def test_checkpoints_are_written_from_a_copy_where_host_memory_has_room_for_it(
    tmp_path: Path, hardware: Hardware, parameters: int | None, background: bool
):
    loaded = planned(tmp_path, hardware, parameters)
    assert loaded.job.checkpoint.background is background
    assert loaded.origins["checkpoint.background"].startswith("planner: ")
    asked = planned(tmp_path, hardware, parameters, checkpoint={"background": not background})
    assert asked.job.checkpoint.background is not background and "planner" not in asked.origins["checkpoint.background"]


def test_a_plan_of_a_planned_job_is_the_same_job(tmp_path: Path):
    once = planned(tmp_path, EIGHT_GPUS, 7_000_000_000)
    assert resolve(once, Cluster(CPU), tmp_path / "model").job == once.job


def given(tmp_path: Path, parameters: int, **sections: Any) -> tuple[LoadedJob, Path]:
    """A job as a user gives it, with its `auto`, and its model's folder."""
    model = hollow_model_folder(tmp_path / "model", parameters, layers=32, hidden=4096)
    return load_job(write_job(tmp_path / "job.yaml", **{"optimizer": ADAMW, **sections})), model


def test_the_next_plan_after_memory_ran_out_needs_a_tenth_less_and_says_why(tmp_path: Path):
    loaded, model = given(tmp_path, 7_000_000_000, batch={"rows": 512}, data={"sequence_length": 4096})
    first = plan_job(loaded, Cluster(EIGHT_GPUS), model).chosen
    second = thriftier(loaded, Cluster(EIGHT_GPUS), model)
    assert first is not None and second is not None and second.job != first.job
    again = plan_job(second, Cluster(EIGHT_GPUS), model).chosen
    assert again is not None and again.job == second.job, "nothing of it is open"
    assert again.memory.device.total <= 0.9 * first.memory.device.total
    assert f"planner: memory ran out with {first.words}" in second.origins["batch.micro"]
    assert "strategy.precision" not in {key for key, why in second.origins.items() if "ran out" in why}


def test_there_is_no_next_plan_where_nothing_is_open_or_nothing_needs_less(tmp_path: Path):
    loaded, model = given(tmp_path, 7_000_000_000)
    settled = resolve(loaded, Cluster(EIGHT_GPUS), model)
    assert thriftier(settled, Cluster(EIGHT_GPUS), model) is None
    one_row = given(tmp_path, 1_000_000, batch={"rows": 1}, strategy={"recompute": "layers"})
    assert thriftier(one_row[0], Cluster(CPU), one_row[1]) is None
    unknown = planned(tmp_path / "none", EIGHT_GPUS, None)
    assert thriftier(unknown, Cluster(EIGHT_GPUS), tmp_path / "none" / "model") is None


def test_where_memory_was_full_the_strategy_that_would_fit_is_named_with_what_sets_it(tmp_path: Path):
    asked = {"zero": 1, "recompute": "none", "tensor": 1, "pipeline": 1, "sequence": 1}
    offload = {"offload": {"optimizer": "none", "parameters": "none"}}
    sections: dict[str, Any] = {"batch": {"rows": 512, "micro": 8}, "strategy": {**asked, **offload}}
    loaded, model = given(tmp_path, 7_000_000_000, data={"sequence_length": 4096}, **sections)
    settled = resolve(loaded, Cluster(EIGHT_GPUS), model)
    said = roomier(settled, Cluster(EIGHT_GPUS), model)
    assert said is not None
    words, _, settings = said.partition(" would fit: the same command with ")
    # it is what the planner says of the job with those settings, and needs a tenth less
    changed = load_job(settled.path, [*settings.split(), "launch.processes=8"])
    there, before = (plan_job(one, Cluster(EIGHT_GPUS), model).chosen for one in (changed, settled))
    assert there is not None and before is not None and there.fits
    assert there.words == words
    assert there.memory.device.total <= 0.9 * before.memory.device.total


def test_where_nothing_would_fit_that_is_said_and_where_the_size_is_unknown_nothing(tmp_path: Path):
    loaded, model = given(tmp_path, 1_000_000, batch={"rows": 1})
    settled = resolve(loaded, Cluster(CPU), model)
    least = resolve(thriftier(loaded, Cluster(CPU), model) or settled, Cluster(CPU), model)
    assert roomier(least, Cluster(CPU), model) == (
        "no strategy would fit: a smaller data.sequence_length, more processes, or more memory"
    )
    unknown = planned(tmp_path / "none", EIGHT_GPUS, None)
    assert roomier(unknown, Cluster(EIGHT_GPUS), tmp_path / "none" / "model") is None


def test_a_limit_of_the_machine_is_said_at_its_key(tmp_path: Path):
    with pytest.raises(UserError, match="a number of processes that it divides") as caught:
        planned(tmp_path, EIGHT_GPUS, 7_000_000_000, strategy={"zero": 1, "tensor": 3})
    assert caught.value.problems[0].where == "strategy.tensor"
