"""ZeRO-Inference over two ranks: who holds what, who computes with whom, and what is left on a fast disk."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.generating import family_folder, inputs_of, planned, whole_model, write_generate_job
from tests.making import write_jsonl
from tests.pool import Pool
from velocity.distributed.comm import Ranks
from velocity.distributed.ds_config import inference_config
from velocity.inference.build import build_engine, longest_row
from velocity.inference.cache import RollingCache, own_mask
from velocity.inference.engine import Step
from velocity.inference.zero_engine import ZeroEngine


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zero")
    family_folder(folder / "model", "Qwen2", tie_word_embeddings=True)
    write_jsonl(folder / "prompts.jsonl", [{"prompt": "Why?"}, {"prompt": "When?"}])
    path = write_generate_job(folder / "job.yaml", {"generation.engine": "zero"})
    inputs_of(planned(path).job)
    return path


def step_of(ids: list[int]) -> Step:
    real_BK = torch.ones(1, len(ids), dtype=torch.bool)
    mask = own_mask(real_BK, len(ids), torch.float32, "sdpa")
    return Step(torch.tensor([ids]), torch.arange(len(ids))[None], mask, RollingCache())


def streamed_on(ranks: Ranks, path: Path, *overrides: str) -> dict[str, Any]:
    """What a rank holds before and behind a forward in which the second one has nothing to compute."""
    job = planned(path, "launch.processes=2", *overrides).job
    config = inference_config(job, ranks.world_size)
    engine = build_engine(job, Path(job.model.path), config, ranks, longest_row(job, inputs_of(job).prompts.lengths))
    parameters: Any = list(engine.model.parameters())
    logits: list[float] = []
    before = [parameter.numel() for parameter in parameters]
    if ranks.first:
        logits = engine.forward(step_of([5, 6, 7, 8]))[0].tolist()
    else:
        engine.idle()
    tokens_B = torch.tensor([ranks.rank])
    found = {
        "logits": logits,
        "gathered": [sum(before), sum(parameter.numel() for parameter in parameters)],
        "share": sum(parameter.ds_tensor.numel() for parameter in parameters),
        "whole": sum(parameter.ds_numel for parameter in parameters),
        "any": engine.any(ranks.first, False, True),
        "own": (engine.leads, engine.same(tokens_B).tolist(), engine.agree(ranks.rank)),
        "lockstep": engine.lockstep,
    }
    engine.close()
    return found


def test_two_ranks_hold_half_of_the_weights_and_compute_the_whole_model(pool: Pool, job: Path):
    with torch.no_grad():
        expected = whole_model(job.parent / "model")(input_ids=torch.tensor([[5, 6, 7, 8]])).logits[0, -1]
    first, second = pool(streamed_on, job)
    torch.testing.assert_close(torch.tensor(first["logits"]), expected, rtol=0, atol=1e-4)
    for found in (first, second):
        # a bias of an odd number of values has one more on each rank, at most
        assert found["whole"] / 2 <= found["share"] < found["whole"] / 2 + 100
        assert found["gathered"] == [0, 0], "weights are gathered while their module runs, and gone behind it"


def test_each_rank_has_rows_of_its_own_and_all_know_of_anybodys_work(pool: Pool, job: Path):
    for rank, found in enumerate(pool(streamed_on, job)):
        assert found["any"] == (True, False, True)
        assert found["own"] == (True, [rank], rank)
        assert found["lockstep"]


def test_weights_that_wait_in_host_memory_compute_the_same(pool: Pool, job: Path):
    plain, waiting = (pool(streamed_on, job, *way)[0] for way in ((), ("strategy.offload.parameters=cpu",)))
    assert waiting["logits"] == pytest.approx(plain["logits"], abs=1e-5)


@pytest.mark.parametrize(("rank", "left"), [(0, False), (1, True)])
def test_the_first_rank_removes_the_runs_folder_on_the_fast_disk(tmp_path: Path, rank: int, left: bool):
    swap = tmp_path / "fast" / "velocity-1"
    swap.mkdir(parents=True)
    (swap / "weights.swp").write_text("…")
    fake: Any = SimpleNamespace(_swap=str(swap), _writes=rank == 0)
    ZeroEngine.close(fake)
    assert swap.exists() is left
    assert swap.parent.exists()


def test_where_nothing_waits_on_a_disk_nothing_is_removed(tmp_path: Path):
    fake: Any = SimpleNamespace(_swap=None, _writes=True)
    ZeroEngine.close(fake)
