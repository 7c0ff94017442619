"""How far is the memory that the planner predicts from what a training step takes?"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import contest
from contest import Result
from reporting import Figure, Report, machine, parser, publish

COLUMNS = ("configuration", "measured MiB", "predicted MiB", "off")
MIB = 2**20
WITHIN = 10.0  # percent


def child(*, quick: bool) -> Result:
    """Measured and predicted bytes of each configuration, by the same code as the test's, on pools of one and two."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.planner.measuring import CONFIGURATIONS, measured_bytes, predicted_bytes, write_model
    from tests.pool import Pool

    chosen = CONFIGURATIONS[:2] if quick else CONFIGURATIONS
    pools = {count: Pool(count) for count in sorted({one.processes for one in chosen})}
    found = []
    with tempfile.TemporaryDirectory() as place:
        for number, one in enumerate(chosen):
            folder = Path(place) / str(number)
            write_model(folder, one.shape)
            measured = measured_bytes(pools[one.processes], folder, one)
            found.append({"name": str(one), "measured": measured, "predicted": predicted_bytes(folder, one)})
    for pool in pools.values():
        pool.close()
    return {"configurations": found}


def off_percent(one: Mapping[str, float]) -> float:
    """Predicted against measured: above 0 where too much was predicted."""
    return 100 * (one["predicted"] / one["measured"] - 1)


def report(found: Sequence[Mapping[str, float]]) -> Report:
    """The table, and how far the worst one is off."""
    rows = []
    for one in found:
        sizes = [f"{one[key] / MIB:,.1f}" for key in ("measured", "predicted")]
        rows.append([str(one["name"]), *sizes, f"{off_percent(one):+.1f} %"])
    off = [abs(off_percent(one)) for one in found]
    figures = [
        Figure("the worst configuration", max(off), "%", WITHIN, at_most=True),
        Figure("all of them, on average", sum(off) / len(off), "%"),
        Figure("configurations", float(len(found)), "", 12),
    ]
    notes = [
        "peak of live tensors in two steps of two micro-batches by DeepSpeed on a processor, the highest of the ranks; "
        "predicted without the allowance, which is for what no tensor holds",
    ]
    return Report("plan_accuracy", str(__doc__), COLUMNS, rows, figures, notes, {"results": list(found)})


def measure(*, quick: bool) -> Report:
    """All configurations, in a process of their own."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--child", *(["--quick"] if quick else [])]
        result = contest.run_script(Path(__file__), arguments, contest.plain_environment(Path(folder)))
    return report(result["configurations"])


def main() -> None:
    """The command line."""
    given = parser(str(__doc__)).parse_args()
    before = machine()
    publish(measure(quick=given.quick), before, save=given.save)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(child(quick="--quick" in sys.argv)))
    else:
        main()
