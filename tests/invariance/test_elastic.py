"""Guarantee 5 across sizes: what any strategy saves, any other one goes on from, optimizer state and all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.invariance.elastic import ALL, OTHERS, PAGE, gaps, resumed, saved, strategy
from tests.pool import Pool
from tests.running import assert_same, prepare_folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    ends = {"tied": True, "untied": False}
    return {name: prepare_folder(tmp_path_factory.mktemp(name), tied=tied) for name, tied in ends.items()}


@pytest.fixture(scope="module")
def pools(pool1: Pool, pool: Pool, pool4: Pool) -> dict[int, Pool]:
    return {1: pool1, 2: pool, 4: pool4}


# each strategy is saved from once, and another goes on; a head of its own matters where matrices or layers are shared
CYCLE = list(zip(ALL, [*list(ALL)[5:], *list(ALL)[:5]], strict=True))
CASES = [("tied", *pair) for pair in CYCLE] + [("untied", *pair) for pair in CYCLE if pair[0] in OTHERS]


@pytest.mark.parametrize(("ends", "one", "other"), CASES)
def test_it_goes_on_bit_for_bit_and_another_strategy_as_it_would_have(
    pools: dict[int, Pool], folders: dict[str, Path], tmp_path: Path, ends: str, one: str, other: str
) -> None:
    (size, changes), (other_size, other_changes) = ALL[one], ALL[other]
    straight = pools[size](saved, folders[ends], changes, tmp_path / "state")
    assert pools[size](resumed, folders[ends], changes, tmp_path / "state") == straight
    for steps in pools[other_size](resumed, folders[ends], other_changes, tmp_path / "state"):
        assert_same(steps, straight[0])


@pytest.mark.slow
@pytest.mark.parametrize("one", ALL)
def test_every_strategy_goes_on_from_every_other_one(
    pools: dict[int, Pool], folders: dict[str, Path], one: str
) -> None:
    assert {name: found for name, found in gaps(pools, folders["tied"], one).items() if not found <= 1e-5} == {}


def test_the_page_has_every_strategy() -> None:
    rows = [line.split("|")[1].strip() for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| ")]
    assert rows[1:] == [f"{number}. {name}" for number, name in enumerate(ALL, start=1)]


MOMENTUM = {"kind": "sgd", "learning_rate": 0.1, "momentum": 0.9, "warmup": 0}
LION = {"kind": "lion", "learning_rate": 1e-3, "warmup": 0}
IN_8_BIT = {"kind": "adamw_8bit", "learning_rate": 1e-2, "warmup": 0}
ADAFACTOR = {"kind": "adafactor", "learning_rate": 1e-2, "warmup": 0}
MUON = {"kind": "muon", "learning_rate": 1e-2, "rest_learning_rate": 1e-2, "warmup": 0}
# from this stage on two ranks to that stage on four
FAST = [(MOMENTUM, 1, 3), (LION, 3, 2), (MUON, 1, 3), (MUON, 3, 1), (ADAFACTOR, 0, 0), (IN_8_BIT, 1, 3)]
SLOW = [(MOMENTUM, 0, 1), (MOMENTUM, 3, 0), (LION, 0, 3), (LION, 1, 0), (MUON, 0, 2), (MUON, 2, 0), (IN_8_BIT, 0, 1),
        (IN_8_BIT, 3, 0)]  # fmt: skip


@pytest.mark.parametrize(
    ("optimizer", "zero", "other"),
    [*FAST, *(pytest.param(*one, marks=pytest.mark.slow) for one in SLOW)],
    ids=[f"{one['kind']}-{zero}-{other}" for one, zero, other in [*FAST, *SLOW]],
)
def test_the_state_of_every_optimizer_goes_on(
    pools: dict[int, Pool], folders: dict[str, Path], tmp_path: Path, optimizer: dict[str, Any], zero: int, other: int
) -> None:
    changes = {**strategy(zero), "optimizer": optimizer}
    straight = pools[2](saved, folders["untied"], changes, tmp_path / "state")
    assert pools[2](resumed, folders["untied"], changes, tmp_path / "state") == straight, (
        "not the same bits at the same size"
    )
    elsewhere = pools[4](resumed, folders["untied"], {**changes, **strategy(other)}, tmp_path / "state")[0]
    if optimizer is MUON:  # the norm that DeepSpeed gives is one of the update, under ZeRO
        assert [loss for loss, _ in elsewhere] == pytest.approx([loss for loss, _ in straight[0]], rel=1e-5)
    elif optimizer is IN_8_BIT:  # other blocks of values are rounded together, from the next step on
        assert_same(elsewhere[:1], straight[0][:1])
        assert elsewhere[1][0] == pytest.approx(straight[0][1][0], rel=2e-3)
    else:
        assert_same(elsewhere, straight[0])
