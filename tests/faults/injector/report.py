"""What came of the faults: counted by kind and phase, printed, and kept in a JSON file and a page."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.faults.injector.rounds import Hit, Played

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "benchmarks"))

from reporting import RESULTS, append, machine, table  # noqa: E402

PAGE = ROOT / "docs" / "faults.md"
TABLE = re.compile(r"(<!-- faults -->\n).*(<!-- /faults -->)", re.DOTALL)
OUTCOMES = ("survived", "refused", "lost")
COLUMNS = ("fault", "landed", "injected", "survived", "refused rightly", "lost")


def rows(hits: Sequence[Hit]) -> list[list[str]]:
    """A row a fault and phase, and one for all."""
    counts = Counter((hit.fault, hit.phase, hit.outcome) for hit in hits)
    found = []
    for fault, phase in dict.fromkeys(sorted((hit.fault, hit.phase) for hit in hits)):
        numbers = [counts[fault, phase, outcome] for outcome in OUTCOMES]
        found.append([fault, phase, *map(str, (sum(numbers), *numbers))])
    totals = [sum(hit.outcome == outcome for hit in hits) for outcome in OUTCOMES]
    return [*found, ["all", "", *map(str, (sum(totals), *totals))]]


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """The table as a page has it."""
    head = [f"| {' | '.join(COLUMNS)} |", f"|---|---|{'---:|' * 4}"]
    return "\n".join([*head, *(f"| {' | '.join(line)} |" for line in lines)])


def publish(rounds: Sequence[Played], seed: int, seconds: float, *, save: bool) -> int:
    """The table is printed, and kept where `save`; 1 where a fault was not survived."""
    hits = [hit for played in rounds for hit in played.hits]
    lines = rows(hits)
    troubles = [played for played in rounds if played.trouble]
    furthest = max((played.furthest for played in rounds), default=0.0)
    print("\n" + table(COLUMNS, lines))
    print(f"seed {seed}, {len(rounds)} rounds in {seconds / 60:.1f} minutes; across sizes losses were at most "
          f"{furthest:.1e} away; {len(troubles)} rounds with trouble")  # fmt: skip
    for played in troubles:
        print(f"- --seed {seed} --only {played.number} ({played.size}; {'; '.join(played.cards)}): {played.trouble}")
    if save:
        _keep(rounds, lines, {"seed": seed, "minutes": round(seconds / 60, 1), "furthest_across_sizes": furthest})
    return int(bool(troubles))


def _keep(rounds: Sequence[Played], lines: Sequence[Sequence[str]], facts: dict[str, Any]) -> None:
    counted = [dict(zip(COLUMNS, line, strict=True)) for line in lines]
    entry = {"benchmark": "faults", **facts, "rounds": len(rounds), "rows": counted,
             "trouble": [played.describe() for played in rounds if played.trouble], **machine()}  # fmt: skip
    append(RESULTS / "faults.json", entry)
    where, versions, away = entry["hardware"], entry["versions"], facts["furthest_across_sizes"]
    measured = (
        f"Seed {facts['seed']}, {len(rounds)} rounds in {facts['minutes']} minutes, {entry['time'][:10]}; "
        f"{where['cores']} cores ({where['processor']}), torch {versions['torch']}, DeepSpeed {versions['deepspeed']}. "
        f"Across sizes the losses were at most {away:.1e} away.\n\n"
    )
    page = PAGE.read_text("utf-8")
    PAGE.write_text(TABLE.sub(lambda found: found[1] + measured + markdown(lines) + "\n" + found[2], page), "utf-8")
