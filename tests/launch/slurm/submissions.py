"""Submissions to Slurm, one that asks for as little as possible and one for all there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.making import write_job
from velocity.config.load import load_job
from velocity.launch.launcher import Submission

NAME = "sft-1125-221503"
FULL: dict[str, Any] = {
    "nodes": 2, "partition": "gpu", "account": "science", "qos": "high", "time": "12h", "gpus_per_node": 8,
    "cpus_per_node": 96, "memory": "900G", "constraint": "h100&ib", "options": ["--exclude=node-7", "--comment=a b"],
    "setup": "module load cuda/12.8\nexport NCCL_DEBUG=WARN", "python": "/shared/velocity/bin/python",
    "warning_seconds": 600, "requeue": True,
}  # fmt: skip
ONE: dict[str, Any] = {"python": "python", "requeue": False}


def submission(folder: Path, launch: dict[str, Any], overrides: tuple[str, ...] = (), **sections: Any) -> Submission:
    """Of a job file in the folder; it is to lie on a disk that no test has."""
    file = write_job(folder / "job.yaml", output="runs/sft", launch={"kind": "slurm", **launch}, **sections)
    loaded = load_job(file)
    place = Path("/shared/work/.velocity/jobs", NAME)
    return Submission(NAME, place, [loaded.job], {"1-job.yaml": file.read_text()}, overrides)
