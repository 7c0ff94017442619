"""ZeRO-Inference from a disk: the weights really lie there while the job runs, and its completions are the same."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.commands import start, velocity
from tests.making import tiny_model_folder, write_jsonl

HIDDEN = 1024  # a square matrix of it has 4 MiB in fp32: DeepSpeed swaps what has 1 MiB and more


def libaio() -> bool:
    """True where DeepSpeed can build its reader."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    return bool(AsyncIOBuilder().is_compatible(verbose=False))


def size(file: Path) -> int:
    """Bytes of a file; 0 where it has just been removed."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


@pytest.mark.slow  # the first time on a machine DeepSpeed compiles its reader, for minutes
@pytest.mark.skipif(not libaio(), reason="needs libaio, e.g. Debian's libaio-dev")
def test_weights_lie_on_the_disk_are_read_from_there_and_give_the_same_completions(tmp_path: Path):
    model = tiny_model_folder(tmp_path / "model", hidden=HIDDEN, heads=8, kv_heads=4, layers=3)
    write_jsonl(tmp_path / "prompts.jsonl", [{"text": f"check the length {i}"} for i in range(20)])
    job = {"task": "generate", "model": str(model), "output": str(tmp_path / "whole"),
           "data": {"prompts": str(tmp_path / "prompts.jsonl"), "cache": str(tmp_path / "cache")},
           "generation": {"max_new_tokens": 16, "engine": "transformers"}, "strategy": {"precision": "fp32"},
           "launch": {"processes": 1}}  # fmt: skip
    (tmp_path / "job.yaml").write_text(json.dumps(job), "utf-8")  # JSON is YAML
    assert velocity("run", tmp_path / "job.yaml").returncode == 0
    disk = tmp_path / "disk"
    streamed = start(
        "run", tmp_path / "job.yaml", f"output={tmp_path / 'streamed'}", "generation.engine=zero",
        "strategy.offload.parameters=nvme", f"strategy.offload.path={disk}",
    )  # fmt: skip
    most = 0
    while streamed.poll() is None:
        most = max(most, sum(map(size, disk.rglob("*.swp"))))
        time.sleep(0.05)
    assert streamed.stderr is not None
    assert streamed.wait() == 0, streamed.stderr.read()
    streamed.stderr.close()
    # of three layers: query and output 1024 x 1024, key and value half of it, three maps of 1024 x 2048
    matrices = 3 * (2 * HIDDEN**2 + 2 * HIDDEN**2 // 2 + 3 * 2 * HIDDEN**2) * 4
    assert most >= matrices
    assert list(disk.iterdir()) == [], "and nothing is left there"
    whole, other = ((tmp_path / name / "completions.jsonl").read_text("utf-8") for name in ("whole", "streamed"))
    assert whole == other
    assert len(whole.splitlines()) == 20
