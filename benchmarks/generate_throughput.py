"""How many prompts a second does Velocity complete, against the scripts that people write around transformers?"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import contest
import ragged
from contest import Result
from generate_contenders import CONTENDERS, job_text
from reporting import Figure, Report, machine, parser, publish, ratio

CHILD = Path(__file__).with_name("generate_contenders.py")
COLUMNS = ("contender", "rows/s", "rows", "new tokens", "seconds", "peak GiB")
BEST = [name for name in CONTENDERS if name.startswith("generate-") and name != "generate-sorted"]


def rows_per_second(result: Result) -> float:
    """Rows over the time that all of them took."""
    return ratio(result["rows"], result["seconds"])


def rows(results: Mapping[str, Result]) -> list[list[str]]:
    """A line a contender."""
    return [
        [CONTENDERS[name].title, f"{rows_per_second(r):.2f}", str(r["rows"]), f"{r['tokens']:,}", f"{r['seconds']:.1f}",
         f"{r['peak_bytes'] / 2**30:.2f}"]
        for name, r in results.items()
    ]  # fmt: skip


def figures(results: Mapping[str, Result]) -> list[Figure]:
    """Ours against the naive loop, and against generate at its best batch size; then the other engines against ours."""
    if "velocity" not in results:
        return []
    ours, found = rows_per_second(results["velocity"]), []
    best = max((rows_per_second(results[name]) for name in BEST if name in results), default=None)
    if "naive" in results:
        found.append(
            Figure("rows against a loop without a cache", ratio(ours, rows_per_second(results["naive"])), target=15.0)
        )
    if best is not None:
        found.append(Figure("rows against generate at its best batch size", ratio(ours, best), target=1.3))
    for name, words in (
        ("generate-sorted", "rows against generate, longest prompts first"),
        ("velocity-deepspeed", "engine transformers against deepspeed"),
        ("velocity-zero", "engine transformers against zero"),
    ):
        if name in results:
            found.append(Figure(words, ratio(ours, rows_per_second(results[name]))))
    return found


def notes(results: Mapping[str, Result]) -> list[str]:
    """How the comparison is meant, and whether the same tokens came out."""
    hashes = {name: r["tokens_hash"] for name, r in results.items() if name != "naive"}
    same = len(set(hashes.values())) == 1
    told = "all contenders' tokens are equal" if same else f"tokens differ: {hashes}"
    return [
        "greedy, fp32, 32 new tokens; loading is not timed; the loop without a cache completes the first rows only",
        told,
        *contest.disturbed(results),
    ]


def measure(model: Path, chats: Path, count: int, rounds: int, names: Sequence[str]) -> Report:
    """All contenders over the same prompts."""

    def run(name: str) -> Result:
        contender = CONTENDERS[name]
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            ragged.write_records(place / "prompts.jsonl", ragged.spread(ragged.read_records(chats), count))
            job = place / "job.yaml"
            job.write_text(job_text(model.resolve(), place / "prompts.jsonl", place))
            environment = contest.velocity_environment if contender.our_environment else contest.plain_environment
            return contest.run_script(CHILD, [name, str(job)], environment(place))

    results = contest.hold(names, rounds, run)
    facts = {"rounds": rounds, "model": model.name, "results": results}
    return Report("generate_throughput", str(__doc__), COLUMNS, rows(results), figures(results), notes(results), facts)


def main() -> None:
    """The command line."""
    options = parser(str(__doc__))
    options.add_argument("--model", type=Path, default=ragged.MODEL)
    options.add_argument("--chats", type=Path, default=ragged.CHATS)
    options.add_argument("--count", type=int, default=128, help="prompts")
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="CONTENDER")
    given = options.parse_args()
    before = machine()
    count, rounds = (16, 1) if given.quick else (given.count, given.rounds)
    publish(measure(given.model, given.chats, count, rounds, given.only), before, save=given.save)


if __name__ == "__main__":
    main()
