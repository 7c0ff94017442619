"""How many preference pairs a second does Velocity train on, against TRL's DPOTrainer?"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import contest
import ragged
from contest import Result
from pair_contenders import CONTENDERS, job_text
from reporting import Figure, Report, machine, parser, publish, ratio

CHILD = Path(__file__).with_name("pair_contenders.py")
COLUMNS = ("contender", "pairs/s", "seconds", "once before", "loss", "peak GiB")
# figure, ours, theirs, at least
COMPARISONS: Sequence[tuple[str, str, str, float | None]] = (
    ("fp32 against TRL as it comes", "velocity-fp32", "trl", 2.2),
    ("fp32 against TRL with its reference computed before", "velocity-fp32", "trl-precomputed", 1.5),
    ("… TRL without recomputation, in our environment", "velocity-fp32", "trl-precomputed-kept", None),
    ("prompts computed once against twice", "velocity-fp32", "velocity-unshared", None),
    ("reference computed before against live", "velocity-fp32", "velocity-live", None),
    ("auto against TRL as it comes in fp32", "velocity-auto", "trl", None),
)


def pairs_per_second(result: Result) -> float:
    """Pairs over the time of the training steps."""
    return ratio(result["pairs"], result["seconds"])


def rows(results: Mapping[str, Result]) -> list[list[str]]:
    """A line a contender."""
    return [
        [CONTENDERS[name].title, f"{pairs_per_second(r):.3f}", f"{r['seconds']:.1f}", f"{r['once_seconds']:.1f}",
         f"{r['loss']:.4f}", f"{r['peak_bytes'] / 2**30:.2f}"]
        for name, r in results.items()
    ]  # fmt: skip


def figures(results: Mapping[str, Result]) -> list[Figure]:
    """The comparisons whose two sides took part: speed, then memory."""
    taking_part = [one for one in COMPARISONS if one[1] in results and one[2] in results]
    speed = [
        Figure(name, ratio(pairs_per_second(results[ours]), pairs_per_second(results[theirs])), target=least)
        for name, ours, theirs, least in taking_part
    ]
    memory = [
        Figure(f"peak memory, {name}", ratio(results[ours]["peak_bytes"], results[theirs]["peak_bytes"]))
        for name, ours, theirs, least in taking_part
        if least is not None
    ]
    return [*speed, *memory]


def notes(results: Mapping[str, Result]) -> list[str]:
    """How the comparison is meant."""
    one = next(iter(results.values()))
    chosen = [f"{CONTENDERS[name].title}: {result['how']}" for name, result in results.items()]
    return [
        f"each trains one pass over the same {one['pairs']} pairs, eight a step, and steps AdamW; one step warms up; "
        "best of the rounds",
        "once before: Velocity's reference scores, which later runs find in the cache; TRL's loading, tokenising and "
        "reference scores",
        *chosen,
        *contest.disturbed(results),
    ]


def measure(model: Path, pairs: Path, count: int, rounds: int, names: Sequence[str]) -> Report:
    """All contenders over the same pairs."""

    def run(name: str) -> Result:
        contender = CONTENDERS[name]
        with tempfile.TemporaryDirectory() as folder:  # a cache of its own: each computes its reference's scores
            place = Path(folder)
            ragged.write_records(place / "pairs.jsonl", ragged.spread(ragged.read_records(pairs), count))
            job = place / "job.yaml"
            job.write_text(job_text(model.resolve(), place / "pairs.jsonl", place))
            environment = contest.velocity_environment if contender.our_environment else contest.plain_environment
            return contest.run_script(CHILD, [name, str(job)], environment(place))

    results = contest.hold(names, rounds, run)
    facts = {"rounds": rounds, "model": model.name, "results": results}
    return Report("pair_throughput", str(__doc__), COLUMNS, rows(results), figures(results), notes(results), facts)


def main() -> None:
    """The command line."""
    options = parser(str(__doc__))
    options.add_argument("--model", type=Path, default=ragged.MODEL)
    options.add_argument("--pairs", type=Path, default=ragged.PAIRS)
    options.add_argument("--count", type=int, default=32, help="pairs")
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="CONTENDER")
    given = options.parse_args()
    before = machine()
    count, rounds = (8, 1) if given.quick else (given.count, given.rounds)
    publish(measure(given.model, given.pairs, count, rounds, given.only), before, save=given.save)


if __name__ == "__main__":
    main()
