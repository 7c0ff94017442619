"""Breaks small runs at random moments for some minutes, and says what came of it: `make faults`."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.injector.kinds import Card, deck
from tests.faults.injector.report import publish
from tests.faults.injector.rounds import Game, Played

CARDS = 3  # a round


def hand(cards: list[Card], number: int) -> list[Card]:
    """What a round is dealt; the deck begins anew where it ends."""
    return [cards[(number * CARDS + place) % len(cards)] for place in range(CARDS)]


def tell(played: Played) -> None:
    """A line a fault, as soon as its round has ended."""
    print(f"round {played.number}: {played.size}, {played.attempts} attempts, {played.seconds:.0f} s", flush=True)
    for hit in played.hits:
        print(f"  {hit.outcome:9} {hit.fault} ({hit.what}), {hit.phase}; exit status {hit.status}", flush=True)
    for why in played.trouble:
        print(f"  TROUBLE: {why}", flush=True)


def main() -> int:
    """1 where a fault was not survived."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seed", type=int, default=int(time.time()), help="the same faults in the same order")
    options.add_argument("--minutes", type=float, default=30.0, help="no round begins later")
    options.add_argument("--only", type=int, action="append", help="this round alone, of those that the seed makes")
    options.add_argument("--save", action="store_true", help="to benchmarks/results/faults.json and docs/faults.md")
    chosen = options.parse_args()
    print(f"seed {chosen.seed}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what runs is ended, and no folder stays
    began, rounds = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="velocity-faults-") as folder:
        game, cards = Game(Path(folder), chosen.seed), deck(chosen.seed)
        for number in chosen.only or range(10_000):
            if time.monotonic() - began > 60 * chosen.minutes:
                break
            rounds.append(game.play(number, hand(cards, number)))
            tell(rounds[-1])
    return publish(rounds, chosen.seed, time.monotonic() - began, save=chosen.save)


if __name__ == "__main__":
    sys.exit(main())
