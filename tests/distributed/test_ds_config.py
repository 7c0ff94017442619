"""deepspeed.json is a pure function of the job and the number of ranks, and what is decided cannot be overridden."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.making import generate_data
from tests.running import make_job
from velocity.config.generate import GenerateJob
from velocity.distributed.ds_config import Shapes, deepspeed_config, inference_config, streamed


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
