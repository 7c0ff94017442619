"""Jobs for SageMaker, and their kept requests. `python -m tests.launch.sagemaker.jobs` writes those anew."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

from tests.making import write_jsonl
from velocity.config.load import TASKS
from velocity.launch.launcher import Submission
from velocity.launch.sagemaker.launcher import SageMakerLauncher

HOME = Path("/home/ann")
HERE: dict[str, Literal["file", "folder"]] = {
    "model": "folder",
    "folder": "folder",
    "chats.jsonl": "file",
    "template.jinja": "file",
    "score.py": "file",
    "tasks": "folder",
}
GOLDEN = Path(__file__).parent / "golden"
ACCOUNT, REGION = "123456789012", "eu-central-1"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/velocity-job"
IMAGE = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/velocity:0.1.0"
SECRET = f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:hub-AbCdEf"
KEY = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/11111111-2222-3333-4444-555555555555"
LAUNCH = {"kind": "sagemaker", "instance": "ml.g6.12xlarge", "role": ROLE, "image": IMAGE}
SFT: dict[str, Any] = {
    "task": "sft",
    "model": "@model",
    "output": "/home/ann/runs/sft",
    "data": {
        "train": [
            {"path": "@chats.jsonl", "weight": 3},
            {"path": "s3://corpus/replay/*.parquet", "format": "text", "fields": {"text": "body"}},
        ],
        "eval": {"unseen": {"path": "s3://corpus/unseen.jsonl.gz"}, "general": {"path": "@folder"}},
        "chat_template": "@template.jinja",
    },
    "batch": {"rows": 8},
    "optimizer": {"learning_rate": 1e-5},
    "duration": {"epochs": 1},
}
PRETRAIN: dict[str, Any] = {
    **SFT,
    "task": "pretrain",
    "model": "company/base-model",
    "output": "/home/ann/runs/pretrain",
    "data": {"train": "@texts/**/*.md"},
}
GENERATE: dict[str, Any] = {
    "task": "generate",
    "model": "/home/ann/runs/sft",
    "output": "/home/ann/runs/answers",
    "data": {"prompts": "@chats.jsonl"},
    "generation": {"max_new_tokens": 64},
}
EVALUATE: dict[str, Any] = {
    "task": "evaluate",
    "model": "/home/ann/runs/sft",
    "output": "/home/ann/runs/judged",
    "data": {
        "eval": {
            "unseen": "s3://corpus/unseen.jsonl.gz",
            "said": {"path": "@chats.jsonl", "kind": "answers", "metrics": ["f1"], "function": "@score.py:score"},
        },
    },
    "retrieval": {"path": "@texts/**/*.md", "passages": 3},
    "benchmarks": {"tasks": ["ours"], "folder": "@tasks"},
}
NETWORK = {"subnets": ["subnet-0a1b2c3d"], "security_groups": ["sg-0a1b2c3d"]}
CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "blank": ([SFT], {"instance": "ml.g6.12xlarge", "kind": "sagemaker"}),
    "two-nodes": ([SFT], {**LAUNCH, "nodes": 2, "bucket": "company-ml", "tags": {"team": "research"}}),
    "chain-on-spot": (
        [PRETRAIN, {**SFT, "model": "/home/ann/runs/pretrain"}, GENERATE],
        {**LAUNCH, **NETWORK, "nodes": 2, "spot": True, "max_hours": 8, "kms_key": KEY,
         "secrets": {"HF_TOKEN": SECRET}},
    ),
    "evaluation": ([SFT, EVALUATE], {**LAUNCH, "nodes": 2}),
    "isolated": (
        [SFT],
        {**LAUNCH, "instance": "ml.m5.4xlarge", "isolated": True, "warm_pool_minutes": 30, "kms_key": KEY,
         "environment": {"NCCL_DEBUG": "INFO"}},
    ),
}  # fmt: skip


def prepare(folder: Path) -> Path:
    """The folder has what the jobs read, without being anything that could be trained on."""
    write_jsonl(folder / "chats.jsonl", [{"messages": []}])
    write_jsonl(folder / "folder" / "part-1.jsonl", [{"messages": []}])
    write_jsonl(folder / "folder" / "more" / "part-2.jsonl", [{"messages": []}])
    (folder / "texts" / "a").mkdir(parents=True)
    (folder / "texts" / "a" / "one.md").write_text("# One\n")
    (folder / "template.jinja").write_text("{{ messages }}")
    (folder / "score.py").write_text("def score(answer, known, row):\n    return 1.0\n")
    (folder / "tasks").mkdir()
    (folder / "tasks" / "ours.yaml").write_text("task: ours\n")
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    (folder / "model" / "model.safetensors").write_bytes(b"weights")
    (folder / "model" / "pytorch_model.bin").write_bytes(b"the same once more")
    return folder


def submission(folder: Path, jobs: list[dict[str, Any]], launch: dict[str, Any], **also: Any) -> Submission:
    """The jobs, which read what lies in the folder, on their way."""
    made = [TASKS[job["task"]].model_validate({**_placed(job, folder), "launch": launch, **also}) for job in jobs]
    files = {f"{number}-{job.task}.yaml": "" for number, job in enumerate(made, 1)}
    return Submission("sft-1125-221503", folder / ".velocity" / "jobs" / "sft-1125-221503", made, files)


def _placed(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The job, with the folder in place of @."""
    placed: dict[str, Any] = json.loads(json.dumps(job).replace('"@', f'"{folder}/'))
    return placed


def look(path: str) -> Literal["file", "folder"] | None:
    """What lies at Ann's."""
    return HERE.get(str(Path(path).relative_to(HOME))) if Path(path).is_relative_to(HOME) else None


def rendered(name: str) -> dict[str, str]:
    """What a case's submission would send, by file name; its paths are the same on every machine."""
    jobs, launch = CASES[name]
    return dict(SageMakerLauncher(at=look).render(submission(HOME, jobs, launch)))


if __name__ == "__main__":
    shutil.rmtree(GOLDEN, ignore_errors=True)
    for case in CASES:
        (GOLDEN / case).mkdir(parents=True)
        for file, text in rendered(case).items():
            (GOLDEN / case / file).write_text(text, "utf-8")
