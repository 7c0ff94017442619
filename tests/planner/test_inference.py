"""What the planner chooses for a generate job, by hand: engine, spread of the weights, rows and places, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.generating import write_generate_job
from tests.making import hollow_model_folder
from velocity.config.generate import GenerateJob
from velocity.config.job import LoadedJob, flatten
from velocity.config.load import load_job
from velocity.errors import UserError
from velocity.planner.hardware import GIB, Hardware
from velocity.planner.inference import CACHE_SHARE, CPU_ROWS, GPU_ROWS, STREAM_ROWS, cache_bytes, resolve
from velocity.planner.machines import Cluster
from velocity.planner.size import ModelSize

CPU = Hardware(8, 64.0, cpu_bf16=True)
EIGHT_GPUS = Hardware(64, 512.0, cpu_bf16=True, gpus=(("NVIDIA H100 80GB HBM3", 80.0, 9.0),) * 8)
OLD_GPU = Hardware(8, 64.0, cpu_bf16=True, gpus=(("Tesla T4", 15.0, 7.5),))
# 0.8 of a device is ours: 64 GiB of an H100, 12 GiB of a T4, 51.2 GiB of the processor's machine
ROOM = {"h100": 64 * GIB, "t4": 12 * GIB, "cpu": 51.2 * GIB}
SMALL, LARGE, HUGE = 1_000_000_000, 70_000_000_000, 400_000_000_000  # parameters: 1.9, 130 and 745 GiB in 16 bit
EIGHT = {"layers": 80, "hidden": 8192, "num_attention_heads": 64, "num_key_value_heads": 8}


def plan(folder: Path, hardware: Hardware, parameters: int | None, **changes: Any) -> LoadedJob[GenerateJob]:
    """A job's plan for a model of so many parameters; None: one that is not here yet."""
    if parameters is not None:
        hollow_model_folder(folder / "model", parameters, **EIGHT)
    asked = {"strategy": "auto", "launch": {"processes": "auto"}, **changes}
    return resolve(load_job(write_generate_job(folder / "job.yaml", asked)), Cluster(hardware), folder / "model")


def chosen(loaded: LoadedJob[GenerateJob]) -> tuple[Any, ...]:
    job = loaded.job
    return job.generation.engine, job.launch.processes, job.strategy.tensor, job.strategy.offload.parameters


def test_nothing_is_left_open_and_every_choice_has_a_reason(tmp_path: Path):
    loaded = plan(tmp_path, EIGHT_GPUS, SMALL)
    open_ = [key for key, value in flatten(loaded.job.model_dump()).items() if value == "auto"]
    assert open_ == ["model.attention"], "which the model's architecture decides"
    reasons = {key: why for key, why in loaded.origins.items() if why.startswith("planner: ")}
    assert set(reasons) == {
        "launch.processes", "strategy.precision", "generation.engine", "strategy.tensor",
        "strategy.offload.parameters", "batch.rows", "batch.tokens",
    }  # fmt: skip
    assert all(len(why) > len("planner: ") for why in reasons.values())


def test_what_a_job_says_itself_is_kept_with_its_own_origin(tmp_path: Path):
    asked = {
        "generation.engine": "deepspeed", "strategy": {"precision": "fp32", "tensor": 4}, "launch": {"processes": 8},
        "batch": {"rows": 3, "tokens": 999},
    }  # fmt: skip
    loaded = plan(tmp_path, EIGHT_GPUS, SMALL, **asked)
    assert chosen(loaded) == ("deepspeed", 8, 4, "none")
    assert (loaded.job.strategy.precision, loaded.job.batch.rows, loaded.job.batch.tokens) == ("fp32", 3, 999)
    planner = [key for key, why in loaded.origins.items() if why.startswith("planner")]
    assert planner == ["strategy.offload.parameters"]


@pytest.mark.parametrize(
    ("hardware", "parameters", "expected"),
    [
        (CPU, SMALL, ("transformers", 1, 1, "none")),
        (EIGHT_GPUS, SMALL, ("transformers", 8, 1, "none")),  # a whole model a GPU
        (EIGHT_GPUS, LARGE, ("deepspeed", 8, 4, "none")),  # 130 GiB over 2 are 65, over 4 are 33; a GPU has 64
        (EIGHT_GPUS, 200_000_000_000, ("deepspeed", 8, 8, "none")),  # 373 GiB over 4 are 93
        (OLD_GPU, 20_000_000_000, ("zero", 1, 1, "cpu")),  # 37 GiB, a GPU has 12 and the host 51
        (EIGHT_GPUS, None, ("transformers", 8, 1, "none")),
    ],
)
def test_the_simplest_engine_that_has_room_is_taken(
    tmp_path: Path, hardware: Hardware, parameters: int | None, expected: tuple[Any, ...]
):
    assert chosen(plan(tmp_path, hardware, parameters)) == expected


def test_the_reason_is_in_gibibytes_and_says_how_many_share(tmp_path: Path):
    why = plan(tmp_path, EIGHT_GPUS, LARGE).origins["generation.engine"]
    assert "130.4 GiB of weights" in why and "64.0 GiB for us" in why and "4 share them" in why
    assert "1 are too few" in plan(tmp_path, OLD_GPU, 20_000_000_000).origins["generation.engine"]


def test_a_group_divides_the_processes_and_the_key_and_value_heads(tmp_path: Path):
    six = Hardware(64, 512.0, cpu_bf16=True, gpus=EIGHT_GPUS.gpus[:6])
    hollow_model_folder(tmp_path / "model", LARGE, **EIGHT)
    # 3 and 6 ranks would have room, but do not divide 8 heads; 2 have none: 65 GiB each
    assert chosen(plan(tmp_path, six, None)) == ("zero", 6, 1, "cpu")


def test_weights_that_no_memory_holds_need_a_fast_disk(tmp_path: Path):
    with pytest.raises(UserError, match="do not fit the host memory") as caught:
        plan(tmp_path, OLD_GPU, HUGE)
    assert caught.value.problems[0].where == "strategy.offload"
    assert "parameters: nvme, path:" in caught.value.problems[0].fix
    disk = {"strategy": {"offload": {"parameters": "nvme", "path": "/fast"}}}
    loaded = plan(tmp_path, OLD_GPU, HUGE, **disk)
    assert chosen(loaded) == ("zero", 1, 1, "nvme")
    assert loaded.job.strategy.offload.path == "/fast"
    assert "strategy.offload says: nvme" in loaded.origins["generation.engine"]


def test_a_streamed_model_waits_in_host_memory_or_where_there_is_no_device_among_the_ranks(tmp_path: Path):
    asked = {"generation.engine": "zero"}
    assert chosen(plan(tmp_path, OLD_GPU, SMALL, **asked)) == ("zero", 1, 1, "cpu")
    assert chosen(plan(tmp_path, CPU, SMALL, **asked)) == ("zero", 1, 1, "none")


def test_a_split_model_is_split_over_all_processes_unless_the_job_says_otherwise(tmp_path: Path):
    asked = {"generation.engine": "deepspeed"}
    assert chosen(plan(tmp_path, EIGHT_GPUS, SMALL, **asked)) == ("deepspeed", 8, 8, "none")
    assert chosen(plan(tmp_path, EIGHT_GPUS, SMALL, **asked, strategy={"tensor": 2})) == ("deepspeed", 8, 2, "none")
    assert chosen(plan(tmp_path, EIGHT_GPUS, SMALL, strategy={"tensor": 2})) == ("deepspeed", 8, 2, "none")


@pytest.mark.parametrize(("processes", "tensor", "use"), [(8, 3, 6), (4, 8, 8), (2, 3, 3)])
def test_a_group_that_does_not_divide_the_processes_is_refused(tmp_path: Path, processes: int, tensor: int, use: int):
    with pytest.raises(UserError, match=f"tensor={tensor} does not divide launch.processes={processes}") as caught:
        plan(tmp_path, EIGHT_GPUS, SMALL, strategy={"tensor": tensor}, launch={"processes": processes})
    assert f"--processes {use}" in caught.value.problems[0].fix


def test_a_model_that_a_job_keeps_whole_and_that_does_not_fit_is_not_split_behind_its_back(tmp_path: Path):
    assert plan(tmp_path, EIGHT_GPUS, LARGE, strategy={"tensor": 1}).job.strategy.tensor == 1
    with pytest.raises(UserError, match="tensor=2 does not go with"):
        plan(tmp_path, EIGHT_GPUS, LARGE, strategy={"tensor": 2, "offload": {"parameters": "cpu"}})


def test_a_token_takes_a_key_and_a_value_in_each_layer():
    # 80 layers, 8 of 64 heads of 128: 2 x 80 x 8 x 128 values
    size = ModelSize(1, 80, 8192, cached=2 * 8 * 128)
    assert (cache_bytes(size, "bf16"), cache_bytes(size, "fp32")) == (2 * 163_840, 4 * 163_840)


@pytest.mark.parametrize(
    ("hardware", "parameters", "changes", "rows", "free", "each"),
    # each token's bytes, and what is free beside the weights
    [
        (CPU, SMALL, {}, CPU_ROWS, ROOM["cpu"] - 2e9, 327_680),
        (EIGHT_GPUS, SMALL, {}, GPU_ROWS, ROOM["h100"] - 2e9, 327_680),
        (EIGHT_GPUS, LARGE, {}, GPU_ROWS, ROOM["h100"] - 140e9 / 4, 327_680 / 4),
        (OLD_GPU, SMALL, {"generation.engine": "zero"}, STREAM_ROWS, ROOM["t4"], 327_680),  # weights pass through
        (CPU, SMALL, {"generation.engine": "zero", "launch": {"processes": 2}}, STREAM_ROWS, ROOM["cpu"] / 2 - 1e9,
         327_680),
    ],
)  # fmt: skip
def test_places_are_the_memory_beside_the_weights_over_a_tokens_bytes(  # noqa: PLR0913 - a row of the table
    tmp_path: Path, hardware: Hardware, parameters: int, changes: dict[str, Any], rows: int, free: float, each: float
):
    job = plan(tmp_path, hardware, parameters, **changes).job
    assert job.batch.rows == rows
    assert job.batch.tokens == int(free * CACHE_SHARE / each)


def test_a_model_that_leaves_no_room_still_has_a_place(tmp_path: Path):
    asked = {"generation.engine": "transformers"}
    assert plan(tmp_path, OLD_GPU, LARGE, **asked).job.batch.tokens == 1


def test_a_model_that_is_not_here_yet_has_so_many_places_a_row(tmp_path: Path):
    loaded = plan(tmp_path, CPU, None, **{"batch": {"rows": 5}})
    assert (loaded.job.batch.rows, loaded.job.batch.tokens) == (5, 5 * 1024)
    assert "not known yet" in loaded.origins["batch.tokens"]


def test_a_longest_row_has_to_fit_beside_the_weights(tmp_path: Path):
    # 31 billion parameters are 57.7 GiB of 64; 20,480 tokens are 6.25 GiB, 24,576 are 7.5
    fits, not_ = (
        {"generation.max_new_tokens": 20_000, "data.max_prompt_tokens": prompt} for prompt in (480, 4576)
    )  # fmt: skip
    assert chosen(plan(tmp_path, EIGHT_GPUS, 31_000_000_000, **fits))[0] == "transformers"
    assert chosen(plan(tmp_path, EIGHT_GPUS, 31_000_000_000, **not_))[0] == "deepspeed"


def test_fp16_needs_a_gpu(tmp_path: Path):
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        plan(tmp_path, CPU, SMALL, strategy={"precision": "fp16"})
    assert plan(tmp_path, OLD_GPU, SMALL).job.strategy.precision == "fp16"
