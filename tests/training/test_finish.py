"""What a finished run leaves: a model, or an adapter that peft loads, with a card; and nothing on other ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.making import write_job
from tests.running import prepare_folder
from velocity.config.load import load_job
from velocity.config.resolved import render
from velocity.config.training import TrainingJob
from velocity.distributed.comm import Ranks
from velocity.distributed.torch_engine import TorchEngine
from velocity.models.adapters import add_adapter
from velocity.models.load import load_model
from velocity.models.scorer import CausalScorer
from velocity.runs.folder import RunFolder
from velocity.training.build import Built
from velocity.training.finish import save_result

SOURCE = {"path": "pairs.jsonl", "records": 1000, "tokens": 20000, "trained": 5000}
LINES = [
    {"step": 0, "eval": {"unseen": {"loss": 0.7, "accuracy": 0.5, "margin": 0.0, "pairs": 4}}},
    {"step": 1, "loss": 0.7, "tokens": 300, "pairs": 2},
    {"step": 2, "loss": 0.6, "tokens": 500, "pairs": 2},
    {"step": 2, "eval": {"unseen": {"loss": 0.6, "accuracy": 0.75, "margin": 1.5, "pairs": 4}}},
]


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_folder(tmp_path_factory.mktemp("finish"))


def built_for(job: TrainingJob, folder: Path) -> Built:
    """A model whose trained weights have moved, in plain PyTorch."""
    model = load_model(folder / "model", job.model, "fp32")
    adapter = add_adapter(model, job.adapter, (str(folder / "model"), None), 0) if job.adapter else None
    scorer = CausalScorer(model, 256)
    with torch.no_grad():
        for value in scorer.parameters():
            value.add_(0.1 * value.requires_grad)
    engine: Any = TorchEngine(scorer, torch.optim.SGD(scorer.parameters()), 0.0)
    return Built(scorer, engine, adapter)


def finished(folder: Path, output: Path, *, rank: int = 0, **sections: Any) -> tuple[RunFolder, Built]:
    """A run of two steps, at its end."""
    places = {"model": str(folder / "model"), "output": str(output)}
    loaded = load_job(write_job(output.parent / "job.yaml", **places, **sections))
    run = RunFolder(output)
    run.path.mkdir(exist_ok=True)
    run.job.write_text(render(loaded))
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    environment = {"model_folder": str(folder / "model"), "data": {"train": [SOURCE]}}
    built = built_for(loaded.job, folder)
    save_result(run, loaded.job, built, environment, Ranks(rank))
    return run, built


def test_a_model_is_saved_whole_with_the_weights_that_were_trained(folder: Path, tmp_path: Path):
    from transformers import AutoModelForCausalLM

    run, built = finished(folder, tmp_path / "run")
    again = AutoModelForCausalLM.from_pretrained(str(run.model)).state_dict()
    assert again.keys() == built.scorer.model.state_dict().keys()
    assert all(torch.equal(value, again[name]) for name, value in built.scorer.model.state_dict().items())
    assert run.status()["state"] == "complete" and run.status()["steps"] == 2


def test_of_an_adapter_the_adapter_alone_is_saved_and_peft_loads_it(folder: Path, tmp_path: Path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run, built = finished(folder, tmp_path / "run", adapter={"rank": 4})
    assert not list(run.model.glob("model*.safetensors")), "the frozen weights are where they were"
    base = AutoModelForCausalLM.from_pretrained(str(folder / "model"))
    again = PeftModel.from_pretrained(base, str(run.model))
    ids = torch.arange(20)[None]
    built.scorer.model.eval()
    built.scorer.model.set_attn_implementation("sdpa")
    torch.testing.assert_close(again(ids).logits, built.scorer.model(ids).logits, rtol=0, atol=1e-5)
    assert run.status()["state"] == "complete"


def test_a_merged_model_of_an_earlier_attempt_does_not_outlive_its_adapter(folder: Path, tmp_path: Path):
    merged = tmp_path / "run" / "merged"
    merged.mkdir(parents=True)
    (merged / "config.json").write_text("{}")
    run, _ = finished(folder, tmp_path / "run", adapter={})
    assert not run.merged.exists()


@pytest.mark.parametrize(
    ("sections", "trained"),
    [({}, "all parameters"), ({"adapter": {"kind": "dora"}}, "an adapter (dora)")],
)
def test_the_card_says_what_was_trained_for_how_long_and_what_it_did(
    folder: Path, tmp_path: Path, sections: dict[str, Any], trained: str
):
    run, _ = finished(folder, tmp_path / "run", task="preference", **sections)
    card = (run.model / "README.md").read_text()
    for part in (
        f"task preference, {trained}, 2 steps, 800 tokens",  # 300 + 500
        f"base_model: {folder / 'model'}",
        "- pairs.jsonl: 1,000 records, 20,000 tokens, 5,000 trained on",
        "| unseen | reward accuracy | 0.50 | 0.75 |",
        "| unseen | reward margin | 0.00 | 1.50 |",
        '"beta": 0.1',
    ):
        assert part in card, part


def test_another_rank_writes_nothing(folder: Path, tmp_path: Path):
    run, _ = finished(folder, tmp_path / "run", rank=1)
    assert not run.model.exists()
    assert run.status() == {"state": "new"}
