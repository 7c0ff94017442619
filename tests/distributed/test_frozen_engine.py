"""A frozen model split over ranks scores as the plain one does, and stays whole in nobody's memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.pool import Pool
from tests.running import loader_of, make_job, plain_engine, prepare_folder
from velocity.distributed.comm import Ranks
from velocity.distributed.ds_config import deepspeed_config
from velocity.distributed.frozen_engine import FrozenEngine
from velocity.models.load import load_model
from velocity.models.scorer import CausalScorer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_folder(tmp_path_factory.mktemp("frozen"), tied=True)


def scored(ranks: Ranks, folder: Path) -> tuple[list[float], int, int, bool]:
    """Scores of one batch, the weights held by this rank and in all, and whether any of them wants a gradient."""
    job = make_job(folder, {"strategy.zero": 3, "batch.micro": 8})
    config = deepspeed_config(job, ranks.world_size)
    model = load_model(Path(job.model.path), job.model, "fp32", zero3=config)
    scorer = CausalScorer(model, 8 * job.row_tokens)
    engine = FrozenEngine(scorer, config, ranks)
    logps_BS = engine(loader_of(make_job(folder, {"batch.micro": 8}), Ranks()).micro_batches(0)[0])
    parameters: list[Any] = list(scorer.parameters())  # with what DeepSpeed adds
    held = sum(parameter.ds_tensor.numel() for parameter in parameters)
    in_all = sum(parameter.ds_numel for parameter in parameters)
    learns = any(parameter.requires_grad for parameter in parameters) or logps_BS.requires_grad
    engine.engine.destroy()
    return logps_BS.flatten().tolist(), held, in_all, learns


def test_two_ranks_score_as_the_plain_model_and_hold_half_of_it_each(pool: Pool, folder: Path) -> None:
    job = make_job(folder, {"batch.micro": 8})
    batch = loader_of(job, Ranks()).micro_batches(0)[0]
    expected = plain_engine(job)(batch).flatten().tolist()
    for scores, held, in_all, learns in pool(scored, folder):
        assert scores == pytest.approx(expected, rel=1e-5, abs=1e-5)
        assert held == pytest.approx(in_all / 2, rel=0.01)
        assert not learns
