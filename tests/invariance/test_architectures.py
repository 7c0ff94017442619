"""Architectures that the planner spreads by itself: in stages and along sequences they compute what one process does.

Split matrices are those of test_tensor.py. Windows, positions, multipliers and softened scores are such as would show.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.invariance.parity import gap
from tests.invariance.test_tensor import EAGER, SGD, prepare
from tests.pool import Pool
from tests.running import assert_same, make_job, steps_on
from velocity.config.combinations import NOT_SEQUENCED, NOT_STAGED, SPLIT_ARCHITECTURES, Facts, limits
from velocity.distributed.comm import Ranks

PIPELINE = {"optimizer": SGD, "strategy.pipeline": 2, "strategy.zero": 1}
SEQUENCE = {"optimizer": SGD, "strategy.sequence": 2, "strategy.zero": 1}
# Both stages have layers of both kinds; an answer of 40 words does not fit into a window of 8 tokens.
WINDOWS: dict[str, Any] = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2}
OWN: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 8}, "starcoder2": {"sliding_window": 8}, "smollm3": {"no_rope_layers": [1, 0, 1, 0]},
    **{name: {"use_sliding_window": True, **WINDOWS} for name in ("qwen2", "qwen3")},
    **dict.fromkeys(("gemma2", "gemma3_text", "cohere2", "ministral", "exaone4"), WINDOWS),
    "granite": {"embedding_multiplier": 2.0, "logits_scaling": 2.0, "residual_multiplier": 0.5,
                "attention_multiplier": 0.2},
}  # fmt: skip


def _prepared(folder: Path, architecture: str) -> tuple[Path, dict[str, Any]]:
    """The folder of four layers, and what its job says beside its strategy."""
    prepare(folder, architecture, num_hidden_layers=4, **OWN.get(architecture, {}))
    if architecture not in EAGER:
        return folder, {}
    return folder, {"model": {"path": str(folder / "model"), "attention": "eager"}, "data.packing": False}


def _compare(pool: Pool, folder: Path, architecture: str, spread: dict[str, Any]) -> None:
    _, own = _prepared(folder, architecture)
    first, second = pool(steps_on, folder, {**spread, **own})
    assert first == second
    assert_same(first, steps_on(Ranks(), folder, {"optimizer": SGD, **own}))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [name for name in SPLIT_ARCHITECTURES if name not in NOT_STAGED])
def test_an_architecture_that_is_cut_into_stages_gives_the_same(pool: Pool, tmp_path: Path, architecture: str) -> None:
    _compare(pool, tmp_path, architecture, PIPELINE)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [name for name in SPLIT_ARCHITECTURES if name not in NOT_SEQUENCED])
def test_an_architecture_whose_sequences_are_spread_gives_the_same(
    pool: Pool, tmp_path: Path, architecture: str
) -> None:
    _compare(pool, tmp_path, architecture, SEQUENCE)


def _refused(ranks: Ranks, folder: Path, changes: dict[str, Any]) -> str:
    """What its engine or its first steps say; nothing where they run."""
    try:
        steps_on(ranks, folder, changes)
    except Exception as error:
        return str(error)
    return ""


@pytest.mark.slow
@pytest.mark.parametrize(("axis", "architecture"), [
    *(("pipeline", name) for name in NOT_STAGED), *(("sequence", name) for name in NOT_SEQUENCED),
])  # fmt: skip
def test_what_the_table_refuses_is_wrong_indeed(pool: Pool, tmp_path: Path, axis: str, architecture: str) -> None:
    prepare(tmp_path, architecture, num_hidden_layers=4, **OWN.get(architecture, {}))
    spread = {"pipeline": PIPELINE, "sequence": SEQUENCE}[axis]
    said = pool(_refused, tmp_path, spread)
    if any(said):
        assert "cannot be cut into stages" in said[0] or "softens attention scores" in said[0]
        return
    assert gap(pool(steps_on, tmp_path, spread)[0], steps_on(Ranks(), tmp_path, {"optimizer": SGD})) > 0.01


@pytest.mark.parametrize(("axis", "refused"), [("pipeline", NOT_STAGED), ("sequence", NOT_SEQUENCED)])
def test_the_table_names_the_architecture_that_it_refuses(tmp_path: Path, axis: str, refused: tuple[str, ...]) -> None:
    job = make_job(tmp_path, {f"strategy.{axis}": 2, "strategy.zero": 1})
    for name in SPLIT_ARCHITECTURES:
        said = [text for key, text in limits(job, Facts(architecture=name)) if key == f"strategy.{axis}"]
        assert [f", not {name};" in text for text in said] == [True] * (name in refused)
