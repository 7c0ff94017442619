"""What the planner chooses, by hand: bytes, precision, ZeRO stage, recomputation, rows at once, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.making import hollow_model_folder, job_data, write_job
from velocity.config.job import LoadedJob, flatten
from velocity.config.load import load_job
from velocity.config.training import TrainingJob
from velocity.planner.device import Precision
from velocity.planner.hardware import Hardware
from velocity.planner.plan import Zero, resolve, state_bytes
from velocity.planner.size import ModelSize

CPU = Hardware(8, 64.0, cpu_bf16=False)
CPU_BF16 = Hardware(8, 64.0, cpu_bf16=True)
EIGHT_GPUS = Hardware(64, 512.0, cpu_bf16=True, gpus=(("NVIDIA H100 80GB HBM3", 80.0, 9.0),) * 8)
OLD_GPU = Hardware(8, 64.0, cpu_bf16=True, gpus=(("Tesla T4", 15.0, 7.5),))


def planned(tmp_path: Path, hardware: Hardware, parameters: int | None, **sections: Any) -> LoadedJob:
    """A job's plan for a model of so many parameters; None: a model that is not here yet."""
    model = tmp_path / "model"
    shape = {k: sections.pop(k) for k in ("layers", "hidden") if k in sections}
    if parameters is not None:
        hollow_model_folder(model, parameters, **shape)
    return resolve(load_job(write_job(tmp_path / "job.yaml", **sections)), hardware, model)


def state(size: ModelSize, precision: Precision, zero: Zero, processes: int, **sections: Any) -> float:
    """Bytes of a rank, for a job with these sections."""
    job = TrainingJob.model_validate({**job_data(Path("folder")), **sections})
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
    [(0, 16.0), (1, 4 + 4 + 8 / 4), (2, 4 + (4 + 8) / 4), (3, 16 / 4)],  # weight, gradient, two moments; four ranks
)
def test_the_state_of_a_rank_in_fp32_has_no_second_copy_of_the_weights(zero: Zero, a_parameter: float):
    assert state(ModelSize(100, 1, 1), "fp32", zero, 4) == 100 * a_parameter


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_one_rank_saves_nothing_by_a_higher_stage(precision: Precision, zero: Zero):
    assert state(ModelSize(10, 1, 1), precision, zero, 1) == 160


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
    assert state(WIDE, "fp32", 3, 4, adapter={"rank": 8}) == (4 * 1_000_000 + 16 * ADAPTER) / 4


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
        # a rank's half of 80 GiB x 0.8 is 32 GiB for the state, on 8 ranks in bf16:
        (0.135, 1),  # 0.135e9 x (2 + 2 + 12/8) = 0.7 GiB
        (7, 2),  # stage 1: 7e9 x 5.5 = 35.9 GiB is too much; stage 2: 7e9 x (2 + 14/8) = 24.4 GiB
        (13, 3),  # stage 2: 13e9 x 3.75 = 45.4 GiB is too much
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
    # 0.5e9 parameters on one H100, bf16, stage 1: 16 bytes each are 7.45 GiB; 64 - 7.45 = 56.55 GiB remain.
    # A row: 24 layers x 1024 wide x 34 bytes x 4096 tokens = 3.1875 GiB. 56.55 / 3.1875 = 17.7
    one = Hardware(8, 64.0, cpu_bf16=True, gpus=(("NVIDIA H100 80GB HBM3", 80.0, 9.0),))
    loaded = planned(
        tmp_path, one, 500_000_000, layers=24, hidden=1024, batch={"rows": 512}, data={"sequence_length": 4096}
    )
    assert (loaded.job.batch.micro, loaded.job.strategy.recompute) == (17, "none")
    assert loaded.origins["batch.micro"].startswith("planner: 3.19 GiB of activations a row, 56.5 GiB free")


def test_activations_are_computed_again_where_not_one_row_of_them_fits(tmp_path: Path):
    # 3.5e9 parameters x 16 bytes = 52.15 GiB of 64; 11.85 GiB remain. A row: 32 layers x 4096 x 34 x 8192 = 34 GiB:
    # too much, unless only a layer's input is kept, 34/17, and one layer lives whole, 34/32: 3.06 GiB. 11.85/3.06 = 3.9
    one = Hardware(8, 64.0, cpu_bf16=True, gpus=(("NVIDIA H100 80GB HBM3", 80.0, 9.0),))
    loaded = planned(
        tmp_path, one, 3_500_000_000, layers=32, hidden=4096, batch={"rows": 512}, data={"sequence_length": 8192}
    )
    assert (loaded.job.batch.micro, loaded.job.strategy.recompute) == (3, "layers")


@pytest.mark.parametrize(("kind", "micro"), [("dpo", 2), ("kto", 4)])
def test_a_row_of_pairs_holds_two_sequences_and_one_of_single_answers_one(tmp_path: Path, kind: str, micro: int):
    # 1024 tokens at once, in rows of 2 x 256 or of 256
    loaded = planned(
        tmp_path, CPU, 1_000_000, task="preference", preference={"kind": kind}, batch={"rows": 64},
        data={"sequence_length": 256},
    )  # fmt: skip
    assert loaded.job.batch.micro == micro


def test_a_gpu_computes_half_as_many_rows_of_pairs(tmp_path: Path):
    # as above: 56.55 GiB remain beside the state, and a row of 2 x 4096 tokens takes 6.375 of them. 56.55 / 6.375 = 8.9
    one = Hardware(8, 64.0, cpu_bf16=True, gpus=(("NVIDIA H100 80GB HBM3", 80.0, 9.0),))
    loaded = planned(
        tmp_path, one, 500_000_000, layers=24, hidden=1024, task="preference", batch={"rows": 512},
        data={"sequence_length": 4096},
    )  # fmt: skip
    assert loaded.job.batch.micro == 8


@pytest.mark.parametrize(
    ("bits", "zero"),
    # 300e9 parameters: 559 GiB in bf16, of which a rank holds an eighth under stage 3; 140 GiB in 4 bit. A rank's half
    # of a GPU is 32 GiB: too little for either, and for stage 3 in 4 bit it would be enough
    [(None, 3), (8, 2), (4, 2)],
)
def test_quantised_weights_are_never_split(tmp_path: Path, bits: int | None, zero: int):
    loaded = planned(tmp_path, EIGHT_GPUS, 300_000_000_000, adapter={"bits": bits})
    assert loaded.job.strategy.zero == zero


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


def test_a_plan_of_a_planned_job_is_the_same_job(tmp_path: Path):
    once = planned(tmp_path, EIGHT_GPUS, 7_000_000_000)
    assert resolve(once, CPU, tmp_path / "model").job == once.job
