"""What a generate job is predicted to take, by hand: weights, cache, and which engine is faster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.generating import write_generate_job
from tests.making import hollow_model_folder
from velocity.config.load import load_job
from velocity.planner.generation import Generation, describe, plans, print_plans
from velocity.planner.machines import Cluster, parse_gpus

EIGHT = {"layers": 80, "hidden": 8192, "num_attention_heads": 64, "num_key_value_heads": 8}


def planned(folder: Path, cluster: Cluster, parameters: int, **changes: Any) -> list[Generation]:
    model = hollow_model_folder(folder / "model", parameters, **EIGHT)
    asked = {"strategy": "auto", "launch": {"processes": "auto"}, **changes}
    return plans(load_job(write_generate_job(folder / "job.yaml", asked)), cluster, model)


def test_a_large_model_is_split_and_its_weights_and_cache_are_a_ranks_part(tmp_path: Path):
    first, *others = planned(tmp_path, parse_gpus("8xH100-80"), 70_000_000_000)
    job = first.loaded.job
    assert (job.generation.engine, job.strategy.tensor) == ("deepspeed", 4)
    assert first.weights == 70e9 * 2 / 4
    assert first.total <= first.room
    # streaming reads all weights from the host for every token
    assert {one.loaded.job.generation.engine for one in others} == {"transformers", "zero"}
    streamed = next(one for one in others if one.loaded.job.generation.engine == "zero")
    assert streamed.host == 70e9 * 2 / 8 and streamed.tokens_per_second < first.tokens_per_second


def test_what_does_not_fit_says_so_and_comes_behind_what_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    cluster = parse_gpus("8xH100-80")
    described = describe(planned(tmp_path, cluster, 70_000_000_000), cluster)
    assert json.loads(json.dumps(described)) == described
    assert [one["fits"] for one in described["candidates"]] == [True, True, False]
    whole = described["candidates"][-1]
    assert whole["short_bytes"]["device"] == pytest.approx(whole["device_bytes"] - 80 * 2**30, abs=2)
    assert "generation.engine" in described["reasons"]
    print_plans(described)
    assert "lacks" in capsys.readouterr().out


def test_an_engine_that_the_job_names_has_no_alternative(tmp_path: Path):
    asked = {"generation.engine": "transformers"}
    assert len(planned(tmp_path, parse_gpus("8xH100-80"), 1_000_000_000, **asked)) == 1


def test_a_model_of_unknown_size_has_no_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    cluster = parse_gpus("8xH100-80")
    found = plans(load_job(write_generate_job(tmp_path / "job.yaml", {})), cluster, tmp_path / "none")
    assert found == []
    print_plans(describe(found, cluster))
    assert "not known yet" in capsys.readouterr().out
