"""What `velocity plan` says of a training job: parts that add up, the best first, what would make others fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.making import write_job
from velocity.config.load import load_job
from velocity.planner.machines import parse_gpus
from velocity.planner.plan import Plan, plan_job
from velocity.planner.table import SHOWN, describe, lines, print_plan

LLAMA_70B = {"model_type": "llama", "vocab_size": 128256, "hidden_size": 8192, "intermediate_size": 28672,
             "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
             "tie_word_embeddings": False}  # fmt: skip


@pytest.fixture(name="plan")
def _plan(tmp_path: Path) -> Plan:
    return planned(tmp_path, duration={"steps": 100})


def planned(folder: Path, **sections: Any) -> Plan:
    """The plan of 70 billion parameters on eight GPUs; nothing but a config.json is there."""
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(LLAMA_70B))
    made = {"optimizer": {"learning_rate": 1e-5}, "batch": {"rows": 64}, "data": {"sequence_length": 4096}, **sections}
    return plan_job(load_job(write_job(folder / "job.yaml", **made)), parse_gpus("8xH100-80"), folder / "model")


def test_the_parts_of_every_candidate_add_up_and_all_of_it_is_json(plan: Plan):
    described = json.loads(json.dumps(describe(plan)))
    assert described["chosen"] == described["candidates"][0]
    for one in described["candidates"]:
        assert sum(one["device"].values()) == pytest.approx(one["device_bytes"], abs=8)
        assert sum(one["host"].values()) == pytest.approx(one["host_bytes"], abs=8)
        assert one["fits"] == (not one["short_bytes"]) == (not one["would_fit_with"])
    assert "strategy.zero" in described["reasons"]


def test_time_and_cost_follow_from_steps_and_price(plan: Plan):
    chosen = describe(plan, price=36.0)["chosen"]
    assert chosen["finish_seconds"] == pytest.approx(100 * chosen["step_seconds"], rel=1e-3)
    assert chosen["cost"] == pytest.approx(chosen["finish_seconds"] / 100, abs=0.01)  # 36 an hour are 1 in 100 s


def test_epochs_have_no_time_because_the_data_decide(tmp_path: Path):
    chosen = describe(planned(tmp_path, duration={"epochs": 2}), price=36.0)["chosen"]
    assert chosen["finish_seconds"] is None and chosen["cost"] is None


def test_tokens_have_a_time(tmp_path: Path):
    chosen = describe(planned(tmp_path, duration={"tokens": 10_000_000}))["chosen"]
    assert chosen["finish_seconds"] == pytest.approx(10_000_000 / chosen["tokens_per_second"], rel=1e-3)


def test_the_table_has_guesses_parts_and_what_is_lacking(plan: Plan):
    text = lines(describe(plan, 36.0), plan.loaded.job)
    assert any("a guess: host memory" in line for line in text)
    assert any(line.startswith("  device") and "activations" in line for line in text)
    assert any("dollars" in line for line in text)
    rows = text[text.index("candidates, best first") + 1 :]
    assert len(rows) == SHOWN + 1 and "more: --json" in rows[-1]
    assert any("lacks" in row and "GiB of device memory; more or larger GPUs" in row for row in rows)


def test_a_model_that_is_not_here_is_said_to_be_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    plan = plan_job(load_job(write_job(tmp_path / "job.yaml")), parse_gpus("8xH100"), tmp_path / "none")
    assert describe(plan)["candidates"] == []
    print_plan(plan)
    assert "size is not known yet" in capsys.readouterr().out
