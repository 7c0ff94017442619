"""A short round of the fault injector: a job that is hit in four phases ends as one that nobody disturbed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.injector.__main__ import CARDS, hand
from tests.faults.injector.kinds import Card, During, deck
from tests.faults.injector.report import rows
from tests.faults.injector.rounds import Game, Hit, Played
from tests.faults.injector.scene import COMMITTING, EVALUATING, STEP, TOKENISING, UNTOLD, Size

SEED = 6
FEW = [
    Card("the command is killed", TOKENISING),
    Card("a rank is killed", COMMITTING),
    Card("all of it is killed", UNTOLD),
]
MORE = [
    Card("the node is killed", EVALUATING),
    Card("a checkpoint has another bit"),
    Card("it is asked to stop", STEP),
]


def told(played: Played) -> str:
    return "\n".join([*played.trouble, *map(str, played.hits)])


def test_a_run_that_is_hit_three_times_ends_as_one_that_nobody_disturbed(tmp_path: Path):
    played = Game(tmp_path, SEED).play(0, FEW, size=Size(1, 2), elastic=False)
    assert not played.trouble, told(played)
    assert [hit.outcome for hit in played.hits] == ["survived"] * len(played.hits)
    assert len(played.hits) >= 2, "a phase may be over before we see it"


@pytest.mark.slow
def test_a_run_that_is_hit_at_two_ranks_ends_as_one_that_nobody_disturbed(tmp_path: Path):
    played = Game(tmp_path, SEED).play(1, MORE, size=Size(2, 3), elastic=False)
    assert not played.trouble, told(played)
    assert len(played.hits) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_what_a_seed_deals_is_survived(tmp_path: Path, seed: int):
    game, cards = Game(tmp_path, seed), deck(seed)
    for number in range(6):
        played = game.play(number, hand(cards, number))
        assert not played.trouble, told(played)


def test_a_seed_deals_every_fault_in_every_phase_and_the_same_again():
    cards = deck(3)
    assert cards == deck(3) != deck(4)
    assert {(card.fault, card.phase) for card in cards} >= {
        (card.fault, phase) for card in cards if isinstance(card.kind, During) for phase in card.kind.phases
    }
    dealt = [card for number in range(-(-len(cards) // CARDS)) for card in hand(cards, number)]
    assert dealt[: len(cards)] == cards


def test_faults_are_counted_by_kind_and_phase():
    hits = [Hit(0, "killed", "a step", "it"), Hit(0, "killed", "a step", "it", "lost"), Hit(1, "torn", "saving", "it")]
    assert rows(hits) == [
        ["killed", "a step", "2", "1", "0", "1"],
        ["torn", "saving", "1", "1", "0", "0"],
        ["all", "", "3", "2", "0", "1"],
    ]
