"""deepspeed.json is a pure function of the job and the number of ranks, and what is decided cannot be overridden."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.distributed.golden_jobs import CHANGES, FOLDER, RANKS, golden_job, leaves, rendered
from tests.making import generate_data
from tests.running import make_job
from velocity.config.generate import GenerateJob
from velocity.config.load import option_names
from velocity.distributed.ds_config import RAW, Shapes, deepspeed_config, fitted, inference_config, origins, streamed


def config(tmp_path: Path, changes: dict[str, Any], world_size: int = 1) -> dict[str, Any]:
    return deepspeed_config(make_job(tmp_path, changes), world_size)


def test_a_jobs_configuration_is_this_one(tmp_path: Path):
    changes = {"strategy.zero": 3, "strategy.precision": "bf16", "batch": {"rows": 64, "micro": 4}}
    assert config(tmp_path, changes, 8) == {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 1,
        "train_batch_size": 32,  # 4 x 8 ranks: what DeepSpeed counts; a step ends when the trainer says
        "managed_gradient_accumulation": False,
        "gradient_clipping": 1.0,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True},
        "steps_per_print": 10**9,
        "bf16": {"enabled": True},
    }


def test_it_is_a_pure_function_of_job_and_ranks(tmp_path: Path):
    changes = {"strategy.zero": 2, "deepspeed": {"zero_optimization": {"overlap_comm": True}}}
    job = make_job(tmp_path, changes)
    before = job.model_dump()
    one, other = deepspeed_config(job, 2), deepspeed_config(make_job(tmp_path, copy.deepcopy(changes)), 2)
    assert one == other
    assert json.loads(json.dumps(one)) == one, "the file says what the engine is given"
    one["zero_optimization"]["stage"] = 9
    assert deepspeed_config(job, 2) == other, "no call shares a value with another"
    assert job.model_dump() == before
    assert deepspeed_config(job, 4)["train_batch_size"] == 2 * other["train_batch_size"]


@pytest.mark.parametrize(("zero", "clipping"), [(0, 0.0), (1, 0.7), (2, 0.7), (3, 0.7)])
def test_deepspeed_clips_but_at_stage_0_where_our_engine_does(tmp_path: Path, zero: int, clipping: float):
    optimizer = {"kind": "sgd", "learning_rate": 1.0, "gradient_clipping": 0.7}
    assert config(tmp_path, {"strategy.zero": zero, "optimizer": optimizer})["gradient_clipping"] == clipping


def test_no_clipping_is_said_because_deepspeed_would_clip_at_1(tmp_path: Path):
    optimizer = {"kind": "sgd", "learning_rate": 1.0, "gradient_clipping": 0}
    assert config(tmp_path, {"strategy.zero": 2, "optimizer": optimizer})["gradient_clipping"] == 0


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_one_precision_is_enabled_and_for_fp32_none(tmp_path: Path, precision: str):
    made = config(tmp_path, {"strategy.zero": 1, "strategy.precision": precision})
    enabled = {name for name in ("bf16", "fp16") if name in made}
    assert enabled == {precision} - {"fp32"}


def test_raw_settings_are_merged_into_the_sections_that_exist(tmp_path: Path):
    raw = {"zero_optimization": {"overlap_comm": True}, "wall_clock_breakdown": True, "steps_per_print": 5}
    made = config(tmp_path, {"strategy.zero": 2, "deepspeed": raw})
    assert made["zero_optimization"] == {"stage": 2, "overlap_comm": True}
    assert made["wall_clock_breakdown"] is True
    assert made["steps_per_print"] == 5
    assert made["gradient_clipping"] == 1.0


@pytest.mark.parametrize("raw", [{"zero_optimization": 3}, {"zero_optimization": None}, {"train_batch_size": None}])
def test_raw_settings_cannot_take_the_place_of_what_is_decided(tmp_path: Path, raw: dict[str, Any]):
    decided = config(tmp_path, {"strategy.zero": 2})
    try:
        made = config(tmp_path, {"strategy.zero": 2, "deepspeed": raw})
    except ValidationError as refused:
        assert f"deepspeed.{next(iter(raw))}" in str(refused)
    else:
        assert made == decided


def generating(tmp_path: Path, **strategy: Any) -> GenerateJob:
    data = generate_data(tmp_path)
    engine = strategy.pop("engine", "zero")
    return GenerateJob.model_validate({
        **data, "generation": {"engine": engine}, "strategy": {"precision": "fp32", **strategy}
    })  # fmt: skip


def test_engines_that_are_no_deepspeed_are_told_nothing(tmp_path: Path):
    assert inference_config(generating(tmp_path, engine="transformers"), 4) == {}


def test_deepspeed_inference_is_told_its_group_and_precision(tmp_path: Path):
    job = generating(tmp_path, engine="deepspeed", tensor=2, precision="bf16")
    assert inference_config(job, 4) == {
        "tensor_parallel": {"tp_size": 2}, "dtype": "bf16", "replace_with_kernel_inject": False
    }  # fmt: skip


def test_weights_of_zero_inference_wait_where_the_job_says(tmp_path: Path):
    config = inference_config(generating(tmp_path, precision="bf16", offload={"parameters": "cpu"}), 4)
    assert config["zero_optimization"]["offload_param"] == {"device": "cpu"}
    assert (config["train_batch_size"], config["bf16"]) == (4, {"enabled": True})
    assert (
        "offload_param"
        not in inference_config(generating(tmp_path, offload={"parameters": "none"}), 1)["zero_optimization"]
    )


def test_two_runs_never_share_a_folder_on_the_disk(tmp_path: Path):
    offload = {"parameters": "nvme", "path": str(tmp_path / "disk")}
    one = generating(tmp_path, offload=offload)
    other = one.model_copy(update={"output": str(tmp_path / "other")})
    paths = [inference_config(job, 1)["zero_optimization"]["offload_param"]["nvme_path"] for job in (one, one, other)]
    assert paths[0] == paths[1] != paths[2]
    assert all(Path(path).parent == tmp_path / "disk" for path in paths)


def test_a_gpu_fetches_a_layer_ahead_from_pinned_memory_and_a_processor_does_not(tmp_path: Path):
    config = inference_config(generating(tmp_path, offload={"parameters": "cpu"}), 2)
    shapes = Shapes(largest=1000, layer=300, together=1)
    for gpu, ahead in ((True, 300), (False, 0)):
        zero = streamed(config, shapes, 2, gpu=gpu)["zero_optimization"]
        assert (zero["stage3_prefetch_bucket_size"], zero["offload_param"]["pin_memory"]) == (ahead, gpu)
        assert zero["stage3_max_live_parameters"] == 2 * 300 + 1000
    assert "pin_memory" not in config["zero_optimization"]["offload_param"], "the first configuration is as it was"


@pytest.mark.parametrize(("ranks", "share"), [(1, 1001), (2, 501), (4, 251)])  # of 1001 values, rounded up
def test_a_swap_buffer_holds_a_ranks_share_of_the_largest_parameter(tmp_path: Path, ranks: int, share: int):
    config = inference_config(generating(tmp_path, offload={"parameters": "nvme", "path": "/nvme"}), ranks)
    zero = streamed(config, Shapes(1001, 300, together=2), ranks, gpu=False)["zero_optimization"]
    assert (zero["offload_param"]["buffer_size"], zero["offload_param"]["buffer_count"]) == (share, 4)


@pytest.mark.parametrize("name", CHANGES)
def test_each_strategys_configuration_is_the_one_that_was_kept(name: str):
    kept = (FOLDER / f"{name}.json").read_text("utf-8")
    assert rendered(name) == kept, "if meant: python -m tests.distributed.golden_jobs"


def test_no_configuration_is_kept_that_no_job_makes():
    assert {path.stem for path in FOLDER.glob("*.json")} == set(CHANGES)


@pytest.mark.parametrize("name", CHANGES)
def test_every_value_has_an_origin_and_that_is_a_key_of_a_job_or_says_why(name: str):
    told = origins(golden_job(name), RANKS)
    assert set(told) == leaves(deepspeed_config(golden_job(name), RANKS))
    keys = {why for why in told.values() if not why.startswith("Velocity: ") and why != RAW}
    assert keys <= set(option_names())


def test_what_the_job_file_says_of_deepspeed_is_its_own_origin():
    told = origins(golden_job("raw"), RANKS)
    assert told["zero_optimization.overlap_comm"] == told["steps_per_print"] == RAW
    assert told["zero_optimization.stage"] == "strategy.zero"


def offloading(tmp_path: Path, **offload: Any) -> dict[str, Any]:
    return config(tmp_path, {"strategy.zero": 3, "strategy.offload": offload})


@pytest.mark.parametrize("gpu", [True, False])
def test_what_a_training_job_offloads_is_pinned_on_a_gpu_alone(tmp_path: Path, gpu: bool):
    made = offloading(tmp_path, optimizer="cpu", parameters="cpu")
    zero = fitted(made, Shapes(1000, 300, together=1), 2, gpu=gpu)["zero_optimization"]
    assert zero["offload_optimizer"]["pin_memory"] is zero["offload_param"]["pin_memory"] is gpu
    assert "sub_group_size" not in zero, "memory has room for the state at once"
    assert "pin_memory" not in made["zero_optimization"]["offload_param"], "the first configuration is as it was"


def test_an_optimizer_steps_through_a_disks_state_a_layer_at_a_time(tmp_path: Path):
    made = offloading(tmp_path, optimizer="nvme", parameters="nvme", path="/nvme")
    zero = fitted(made, Shapes(1001, 3000, together=2), 2, gpu=False)["zero_optimization"]
    assert zero["sub_group_size"] == 1500
    assert (zero["offload_param"]["buffer_size"], zero["offload_param"]["max_in_cpu"]) == (501, 0)


def test_an_offloaded_optimizer_alone_leaves_weights_as_deepspeed_gathers_them(tmp_path: Path):
    made = offloading(tmp_path, optimizer="cpu", parameters="none")
    zero = fitted(made, Shapes(1000, 300, together=1), 2, gpu=True)["zero_optimization"]
    assert not {"offload_param", "stage3_max_live_parameters", "stage3_prefetch_bucket_size"} & set(zero)


def test_a_size_that_the_job_file_gives_stays(tmp_path: Path):
    raw = {"zero_optimization": {"sub_group_size": 7, "offload_optimizer": {"pin_memory": False}}}
    offload = {"optimizer": "nvme", "parameters": "none", "path": "/nvme"}
    made = config(tmp_path, {"strategy.zero": 3, "strategy.offload": offload, "deepspeed": raw})
    zero = fitted(made, Shapes(1000, 300, together=1), 2, gpu=True)["zero_optimization"]
    assert (zero["sub_group_size"], zero["offload_optimizer"]["pin_memory"]) == (7, False)


def test_deepcompile_is_told_which_backward_is_the_last(tmp_path: Path):
    made = config(tmp_path, {"strategy.zero": 3, "strategy.compile": "deepcompile"})
    assert (made["compile"], made["managed_gradient_accumulation"]) == ({"deepcompile": True}, True)
