"""Submissions to Kubernetes that tests share. Run as a module it writes the kept manifests anew."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import yaml

from tests.making import generate_data, job_data
from velocity.config.load import load_job
from velocity.launch.kubernetes.manifest import manifest
from velocity.launch.launcher import Submission

GOLDEN = Path(__file__).parent / "golden"
IMAGE = "registry.example.org/team/velocity@sha256:" + "0" * 64
MIRROR = "s3://bucket/runs/sft"
REMOTE = {"model": "HuggingFaceTB/SmolLM2-135M", "output": "runs/sft", "checkpoint": {"mirror": MIRROR}}
CHATS = {"train": "s3://bucket/chats/*.jsonl"}
GPUS: dict[str, Any] = {
    "nodes": 2, "gpus_per_node": 8, "cpus_per_node": 90, "memory": "1800Gi", "shared_memory": "200Gi",
    "namespace": "research", "context": "big", "claim": "team-files", "mount": "/files", "efa": 32,
    "service_account": "trainer", "secrets": ["hub", "trackers"], "max_hours": 12.5, "max_restarts": 2, "user": 2000,
    "environment": {"NCCL_DEBUG": "WARN", "NOTE": "costs $(date)"},
    "node_selector": {"node.kubernetes.io/instance-type": "p5.48xlarge"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
}  # fmt: skip


def submission(*jobs: dict[str, Any], name: str = "sft-1125-221503", overrides: tuple[str, ...] = ()) -> Submission:
    """Jobs as `make_submission` gives them, in a folder that is the same everywhere."""
    loaded, files = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for number, job in enumerate(jobs, 1):
            path = Path(folder, f"{job['task']}.yaml")
            path.write_text(yaml.safe_dump(job, sort_keys=False), "utf-8")
            loaded.append(load_job(path, overrides).job)
            files[f"{number}-{path.name}"] = path.read_text("utf-8")
    return Submission(name, Path("/home/me/.velocity/jobs", name), loaded, files, overrides)


def sft(launch: dict[str, Any] | None = None, **sections: Any) -> dict[str, Any]:
    """A job whose inputs lie elsewhere, with these sections in place of its own."""
    job = copy.deepcopy(job_data(Path("folder")))
    job["data"] = {**job["data"], **CHATS, "cache": "~/.cache/velocity"}
    kubernetes = {"kind": "kubernetes", "image": IMAGE, **(launch or {})}
    return {**job, **REMOTE, **sections, "launch": kubernetes}


def generate(launch: dict[str, Any] | None = None, **sections: Any) -> dict[str, Any]:
    """A job that answers prompts, of an earlier one's model."""
    job = {**generate_data(Path("folder")), "model": "runs/sft", "output": "runs/answers", **sections}
    job["data"] = {"prompts": "corpus/prompts.jsonl"}
    return {**job, "launch": {"kind": "kubernetes", "image": IMAGE, **(launch or {})}}


def evaluate(launch: dict[str, Any] | None = None, **sections: Any) -> dict[str, Any]:
    """A job that measures an earlier one's model, and reads all that such a job can."""
    said = {"path": "corpus/chats.jsonl", "kind": "answers", "function": "scores/mine.py:score"}
    job = {
        "task": "evaluate", "model": "runs/sft", "output": "runs/judged",
        "data": {"eval": {"unseen": "s3://bucket/unseen.jsonl", "said": said}},
        "retrieval": {"path": "corpus/train.jsonl"}, "benchmarks": {"tasks": ["ours"], "folder": "tasks"}, **sections,
    }  # fmt: skip
    return {**job, "launch": {"kind": "kubernetes", "image": IMAGE, **(launch or {})}}


def cases() -> dict[str, Submission]:
    """Kept manifests, by name."""
    lying = {"data": {"train": "corpus/chats.jsonl"}, "model": "models/smol", "checkpoint": {}}
    return {
        "two-nodes": submission(sft({"nodes": 2, "cpus_per_node": 4, "memory": "16Gi"})),
        "gpus-and-claim": submission(sft(GPUS, **lying), generate(GPUS), overrides=("seed=7", "output=runs/$(ME)")),
        "defaults": submission(sft({})),
        "evaluation": submission(evaluate({"nodes": 2, "claim": "team-files"})),
    }


def rendered(name: str) -> str:
    """The manifest of a case."""
    return manifest(cases()[name], IMAGE)


if __name__ == "__main__":
    for kept in cases():
        (GOLDEN / f"{kept}.yaml").write_text(rendered(kept), "utf-8")
