"""Published models by their shapes, and jobs over them: what the planner's tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.making import job_data
from velocity.config.training import TrainingJob
from velocity.planner.candidates import Setting
from velocity.planner.machines import Cluster
from velocity.planner.size import ModelSize

LLAMA_7B = ModelSize(6_738_415_616, 32, 4096, 2 * 4096, 32, 32000, 11008, 32, 128, model_type="llama")
LLAMA_70B = ModelSize(70_553_706_496, 80, 8192, 2 * 1024, 8, 128256, 28672, 64, 128, model_type="llama")
SEVEN_BILLION = ModelSize(7_000_000_000, 32, 4096)


def job(**changes: Any) -> TrainingJob:
    """A pre-training job with AdamW in bf16, its strategy decided; `changes` are dotted keys, with __ for the dot."""
    data: dict[str, Any] = {**job_data(Path("folder")), "task": "pretrain", "optimizer": {"learning_rate": 1e-5}}
    data["data"] = {**data["data"], "sequence_length": 4096}
    data["batch"] = {"rows": 64, "micro": 1}
    data["strategy"] = {"zero": 3, "precision": "bf16", "recompute": "layers", "tensor": 1, "pipeline": 1,
                        "sequence": 1, "offload": {"optimizer": "none", "parameters": "none"}}  # fmt: skip
    for key, value in changes.items():
        *sections, name = key.split("__")
        section = data
        for inner in sections:
            section = section[inner]
        section[name] = value
    return TrainingJob.model_validate(data)


def open_job(**changes: Any) -> TrainingJob:
    """The same with everything left to the planner but precision."""
    made = job(**changes, strategy={"precision": "bf16"})
    return made.model_copy(update={"batch": made.batch.model_copy(update={"micro": "auto"})})


def on(size: ModelSize, cluster: Cluster) -> Setting:
    """A model on all GPUs of these machines, or in one process."""
    return Setting(size, cluster, max(1, len(cluster.all_gpus.gpus)), {})
