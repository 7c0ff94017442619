"""All benchmarks, one after another, and a table of every figure, its target and whether it is met."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ragged
from reporting import FIGURE_COLUMNS, Figure, parser, table

HERE = Path(__file__).parent
# the script, and which of the run's inputs it takes
SCRIPTS: Mapping[str, Sequence[str]] = {
    "startup": ("model", "chats"),
    "loss_memory": (),
    "data_memory": ("model", "texts"),
    "tokenise_throughput": ("model", "chats"),
    "train_throughput": ("model", "chats"),
    "pair_throughput": ("model", "pairs"),
    "generate_throughput": ("model", "chats"),
    "stream_memory": (),
    "plan_accuracy": (),
    "checkpoint_cost": (),
}


def arguments(name: str, given: Mapping[str, Any]) -> list[str]:
    """The command line of one script."""
    inputs = [part for key in SCRIPTS[name] for part in (f"--{key}", str(given[key]))]
    return [str(HERE / f"{name}.py"), *inputs, *(f"--{flag}" for flag in ("quick", "save") if given[flag])]


def run(name: str, given: Mapping[str, Any]) -> dict[str, Any] | None:
    """The script's JSON line, after all else that it said has been shown; None where it failed."""
    print(f"\n== {name}", flush=True)
    done = subprocess.run([sys.executable, *arguments(name, given)], stdout=subprocess.PIPE, text=True, check=False)
    *shown, last = done.stdout.splitlines() or [""]
    print("\n".join(shown if done.returncode == 0 else [*shown, last]), flush=True)
    return json.loads(last) if done.returncode == 0 else None


def rows(name: str, entry: Mapping[str, Any] | None) -> list[list[str]]:
    """The lines of one benchmark in the summary."""
    if entry is None:
        return [[name, "it failed: see above", "", "", "NO"]]
    kept = ("name", "value", "unit", "target", "at_most")
    figures = [Figure(**{key: figure[key] for key in kept}) for figure in entry["figures"]]
    return [[name, *figure.cells()] for figure in figures]


def main() -> int:
    """Run them; 1 where one could not be run. A figure that misses its target is shown, and fails nothing."""
    options = parser(str(__doc__))
    options.add_argument("--model", type=Path, default=ragged.MODEL)
    options.add_argument("--chats", type=Path, default=ragged.CHATS)
    options.add_argument("--pairs", type=Path, default=ragged.PAIRS)
    options.add_argument("--texts", type=Path, default=ragged.TEXTS)
    given = vars(options.parse_args())
    entries = {name: run(name, given) for name in SCRIPTS}
    lines = [row for name, entry in entries.items() for row in rows(name, entry)]
    print(f"\n{table(('benchmark', *FIGURE_COLUMNS), lines)}")
    if given["quick"]:
        print("- a smoke run: the sizes are too small for any figure to count")
    return int(None in entries.values())


if __name__ == "__main__":
    sys.exit(main())
