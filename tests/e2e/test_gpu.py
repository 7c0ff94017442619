"""`velocity run` on a GPU: losses follow the plain engine on the processor, completions plain transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands import step_lines, velocity
from tests.making import tiny_model_folder, write_job, write_jsonl
from tests.running import make_job, plain_engine, prepare_folder, take_steps
from velocity.distributed.comm import Ranks

STEPS = 6
# relative: fp32 differs by the order of sums, bf16 has 8 bits of mantissa and fp16 has 11
TOLERANCES = {"fp32": 1e-3, "bf16": 2e-2, "fp16": 5e-3}


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("precision", "zero"), [("fp32", 0), ("fp32", 3), ("bf16", 1), ("bf16", 2), ("bf16", 3), ("fp16", 2)]
)
def test_losses_on_a_gpu_are_those_of_the_plain_engine_to_rounding(tmp_path: Path, precision: str, zero: int) -> None:
    prepare_folder(tmp_path)
    job = write_job(
        tmp_path / "job.yaml",
        batch={"rows": 8, "micro": 2},
        duration={"steps": STEPS},
        strategy={"zero": zero, "precision": precision},
        launch={"processes": 1},
    )
    done = velocity("run", job)
    assert done.returncode == 0, done.stderr
    lines = step_lines(tmp_path / "run")
    assert [line["skipped"] for line in lines] == [0] * STEPS
    reference = make_job(tmp_path, {})
    expected = take_steps(reference, plain_engine(reference), Ranks(), STEPS)
    for line, (loss, _) in zip(lines, expected, strict=True):
        assert line["loss"] == pytest.approx(loss, rel=TOLERANCES[precision]), line
    assert all(line["memory_gib"] > 0 for line in lines)


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["transformers", "deepspeed", "zero"])
def test_greedy_completions_on_a_gpu_are_those_of_transformers_on_the_processor(tmp_path: Path, engine: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny_model_folder(tmp_path / "model")
    texts = ["check the length", "copy no more bytes than the buffer holds", "a"]
    write_jsonl(tmp_path / "prompts.jsonl", [{"text": text} for text in texts])
    settings = {"task": "generate", "model": str(folder), "output": str(tmp_path / "run"),
                "data": {"prompts": str(tmp_path / "prompts.jsonl"), "cache": str(tmp_path / "cache")},
                "generation": {"engine": engine, "max_new_tokens": 8, "logprobs": True},
                "strategy": {"precision": "fp32"}, "launch": {"processes": 1}}  # fmt: skip
    (tmp_path / "job.yaml").write_text(json.dumps(settings), "utf-8")  # JSON is YAML
    done = velocity("run", tmp_path / "job.yaml")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in (tmp_path / "run" / "completions.jsonl").read_text("utf-8").splitlines()]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for text, line in zip(texts, found, strict=True):
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        alone = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
        assert line["completion_tokens"] == len(alone)
        assert tokenizer.decode(alone, skip_special_tokens=True) == line["completion"]
