"""How many tokens a second does Velocity train on ragged chats, against TRL's SFTTrainer and a bare PyTorch loop?"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import contest
import ragged
from contest import Result
from reporting import Figure, Report, machine, parser, publish, ratio
from train_contenders import CONTENDERS, job_text

CHILD = Path(__file__).with_name("train_contenders.py")
COLUMNS = ("contender", "tokens/s", "seconds", "steps", "loss", "peak GiB")
# figure, ours, theirs, at least
COMPARISONS: Sequence[tuple[str, str, str, float | None]] = (
    ("fp32 against TRL padded", "velocity-fp32", "trl-padded", 1.6),
    ("… TRL in our environment", "velocity-fp32", "trl-padded-env", None),
    ("… and TRL without recomputation", "velocity-fp32", "trl-padded-kept", None),
    ("fp32 against TRL packed", "velocity-fp32", "trl-packed", 1.8),
    ("… TRL in our environment, without recomputation", "velocity-fp32", "trl-packed-kept", None),
    ("fp32 against a bare loop", "velocity-fp32", "bare", 1.0),
    ("… the bare loop in our environment", "velocity-fp32", "bare-env", 1.0),
    ("auto against TRL padded in fp32", "velocity-auto", "trl-padded", 2.2),
    ("… TRL padded in bf16", "velocity-auto", "trl-padded-bf16", None),
)


COMPARED = dict.fromkeys(side for _, ours, theirs, _ in COMPARISONS for side in (ours, theirs))


def tokens_per_second(result: Result) -> float:
    """Tokens without padding over the time of the training steps."""
    return ratio(result["tokens"], result["seconds"])


def rows(results: Mapping[str, Result]) -> list[list[str]]:
    """A line a contender."""
    return [
        [CONTENDERS[name].title, f"{tokens_per_second(r):.1f}", f"{r['seconds']:.1f}", str(r["steps"]),
         f"{r['loss']:.4f}", f"{r['peak_bytes'] / 2**30:.2f}"]
        for name, r in results.items()
    ]  # fmt: skip


def figures(results: Mapping[str, Result]) -> list[Figure]:
    """The comparisons whose two sides took part."""
    return [
        Figure(name, ratio(tokens_per_second(results[ours]), tokens_per_second(results[theirs])), target=least)
        for name, ours, theirs, least in COMPARISONS
        if ours in results and theirs in results
    ]


def check_equal_work(results: Mapping[str, Result]) -> None:
    """Nothing, or SystemExit where two contenders did not train on the same number of tokens and labels."""
    work = {name: (result["tokens"], result["trained"]) for name, result in results.items()}
    if len(set(work.values())) > 1:
        raise SystemExit(f"the contenders did not do the same work (tokens, labels): {work}")


def notes(results: Mapping[str, Result]) -> list[str]:
    """How the comparison is meant."""
    one = next(iter(results.values()))
    chosen = [f"{CONTENDERS[name].title}: {result['attention']}" for name, result in results.items()]
    return [
        f"each trains one pass over the same {one['tokens']:,} tokens, {one['trained']:,} of them labels, and steps "
        "AdamW; one step warms up; best of the rounds",
        "SmolLM2's chat template has no {% generation %} markers, so from chats alone TRL would train on every token. "
        "Here it is given Velocity's token ids and labels; on a processor its head scores every position either way",
        "our environment: the threads and malloc settings that `velocity run` gives its processes",
        "attention: " + "; ".join(chosen),
        *contest.disturbed(results),
    ]


def measure(model: Path, chats: Path, row_count: int, rounds: int, names: Sequence[str]) -> Report:
    """All contenders over the same chats."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        count = ragged.write_records(place / "chats.jsonl", ragged.spread(ragged.read_records(chats), row_count))
        job = place / "job.yaml"
        job.write_text(job_text(model.resolve(), place / "chats.jsonl", place))
        plain, ours = contest.plain_environment(place), contest.velocity_environment(place)

        def run(name: str) -> Result:
            return contest.run_script(CHILD, [name, str(job)], ours if CONTENDERS[name].our_environment else plain)

        results = contest.hold(names, rounds, run)
    check_equal_work(results)
    facts = {"chats": count, "rounds": rounds, "model": model.name, "results": results}
    return Report("train_throughput", str(__doc__), COLUMNS, rows(results), figures(results), notes(results), facts)


def main() -> None:
    """The command line."""
    options = parser(str(__doc__))
    options.add_argument("--model", type=Path, default=ragged.MODEL)
    options.add_argument("--chats", type=Path, default=ragged.CHATS)
    options.add_argument("--rows", type=int, default=96, help="chats")
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(COMPARED), metavar="CONTENDER")
    given = options.parse_args()
    before = machine()
    row_count, rounds = (8, 1) if given.quick else (given.rows, given.rounds)
    publish(measure(given.model, given.chats, row_count, rounds, given.only), before, save=given.save)


if __name__ == "__main__":
    main()
