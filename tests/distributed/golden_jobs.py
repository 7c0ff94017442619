"""Jobs whose DeepSpeed configurations are kept. `python -m tests.distributed.golden_jobs` writes them anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.running import make_job
from velocity.config.training import TrainingJob
from velocity.distributed.ds_config import deepspeed_config

FOLDER = Path(__file__).parent / "golden"
RANKS = 4
NVME = {"optimizer": "nvme", "parameters": "nvme", "path": "/nvme"}
HOST = {"optimizer": "cpu", "parameters": "none"}
QUANTISED = {"quantised_weights": True, "quantised_gradients": True, "secondary": 2}
ADAMW = {"kind": "adamw", "learning_rate": 1e-4}
CHANGES: dict[str, dict[str, Any]] = {
    "whole": {},
    "zero1": {"strategy.zero": 1},
    "zero2-bf16": {"strategy.zero": 2, "strategy.precision": "bf16"},
    "zero3-fp16": {"strategy.zero": 3, "strategy.precision": "fp16"},
    "bf16-states": {"strategy.zero": 2, "strategy.precision": "bf16", "strategy.states": "bf16"},
    "tensor": {"strategy.zero": 1, "strategy.tensor": 2},
    "pipeline": {"strategy.zero": 1, "strategy.pipeline": 2},
    "sequence": {"strategy.zero": 3, "strategy.sequence": 2},
    "offload-cpu": {"strategy.zero": 2, "strategy.offload": HOST},
    "offload-both": {"strategy.zero": 3, "strategy.offload": {"optimizer": "cpu", "parameters": "cpu"}},
    "offload-part": {"strategy.zero": 3, "strategy.offload": {**HOST, "ratio": 0.5}, "optimizer": ADAMW},
    "offload-nvme": {"strategy.zero": 3, "strategy.offload": NVME},
    "superoffload": {"strategy.zero": 3, "strategy.offload": {**HOST, "overlap": "superoffload"}, "optimizer": ADAMW},
    "zero-plus-plus": {"strategy.zero": 3, "strategy.precision": "bf16", "strategy.zero_plus_plus": QUANTISED},
    "deepcompile": {"strategy.zero": 3, "strategy.compile": "deepcompile"},
    "muon": {
        "strategy.zero": 3,
        "optimizer": {"kind": "muon", "learning_rate": 0.02, "gradient_clipping": 0},
    },
    "raw": {"strategy.zero": 2, "deepspeed": {"zero_optimization": {"overlap_comm": True}, "steps_per_print": 5}},
}


def golden_job(name: str) -> TrainingJob:
    """The job of a kept configuration; its paths are the same on every machine."""
    return make_job(Path("/job"), CHANGES[name])


def rendered(name: str) -> str:
    """The configuration as its file says it."""
    return json.dumps(deepspeed_config(golden_job(name), RANKS), indent=1) + "\n"


def leaves(value: Any, before: str = "") -> set[str]:
    """The dotted keys of all that is no section of a configuration; an empty section is one."""
    if not isinstance(value, dict) or not value:
        return {before.rstrip(".")}
    return set().union(*(leaves(inner, f"{before}{key}.") for key, inner in value.items()))


if __name__ == "__main__":
    for stale in FOLDER.glob("*.json"):
        stale.unlink()
    for each in CHANGES:
        (FOLDER / f"{each}.json").write_text(rendered(each), "utf-8")
