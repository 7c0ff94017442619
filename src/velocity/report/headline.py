"""What the first lines of a report say of a run: its state, its size, what it came to. It knows no picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from velocity.report.facts import Run
from velocity.report.spelling import count, duration, number, percent
from velocity.runs.folder import MEASURES, Measured, is_share
from velocity.runs.prediction import measured

Points = list[tuple[float, Measured]]  # what was measured after a step


@dataclass(frozen=True)
class Fact:
    """One number of the headline."""

    name: str
    value: str
    note: str = ""


def facts(run: Run) -> list[Fact]:
    """The numbers of a run, what it came to first."""
    found = [*results(run), Fact("time", duration(run.seconds), _when(run)) if run.seconds is not None else None]
    if run.steps:
        trained = sum(line.get("tokens") or 0 for line in run.steps)
        found += [Fact("steps", f"{len(run.steps):,}"), Fact("tokens trained on", count(trained))]
        if (skipped := run.steps[-1].get("skipped")) and skipped > 0:
            found.append(Fact("steps skipped", f"{skipped:,.0f}", "their gradient was not finite"))
    found += _rates(run)
    if run.restarts:
        found.append(Fact("restarts", f"{len(run.restarts)}", "a rank was lost"))
    return [fact for fact in found if fact is not None]


def _when(run: Run) -> str:
    return "so far" if run.state == "running" else "since its last start"


def _rates(run: Run) -> Iterator[Fact]:
    """Throughput and memory, each against its plan."""
    chosen = run.plan.get("chosen") or {}
    if run.steps:
        found = measured(run.steps)
        memory, speed = found if found else (None, None)
    else:
        told = run.rows
        memory = max((line["memory_gib"] for line in told), default=0) * 2**30 or None
        speed = told[-1]["tokens_per_second"] if told else None
        if told:
            sets = (run.evaluation.get("sets") or {}).values()
            yield Fact("rows", f"{sum(one['rows'] for one in sets) or told[-1]['step']:,}")
    if speed is not None:
        yield Fact("tokens a second", number(speed), _planned(speed, chosen.get("tokens_per_second"), 1))
    if memory is not None:
        yield Fact("memory", f"{number(memory / 2**30)} GiB", _planned(memory, chosen.get("device_bytes"), 2**30))


def _planned(value: float, predicted: float | None, unit: float) -> str:
    return f"{number(value / predicted, 2)} × the {number(predicted / unit)} planned" if predicted else ""


def results(run: Run) -> list[Fact]:
    """What the run came to: its evaluations; of a run without one its loss, or its completions."""
    if run.evaluation.get("sets") or run.evaluation.get("benchmarks"):
        return [Fact(f"{name}: {words}", told, note) for name, words, told, note in _main_measures(run.evaluation)]
    found = [
        Fact(f"{name}: {MEASURES[key]}", measure(key, last.value), "; ".join(filter(None, notes)))
        for (name, key), points in evaluations(run).items()
        for first, last in [(points[0][1], points[-1][1])]
        if last.value is not None
        for notes in [(change(key, first.value, last.value), interval(key, last._asdict()))]
    ]
    if not found and run.steps:
        losses = [line["loss"] for line in run.steps]
        return [Fact("loss", number(losses[-1], 4), f"from {number(losses[0], 4)}")]
    done = next((line["completed"] for line in reversed(run.lines) if isinstance(line.get("completed"), dict)), None)
    if done:
        ends = ", ".join(f"{ended:,} by {reason}" for reason, ended in sorted(done.get("finish_reasons", {}).items()))
        found.append(Fact("completions", f"{done.get('completions', 0):,}", f"ended: {ends}" if ends else ""))
    return found


def _main_measures(evaluation: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Of each set its first measure, which is its main one."""
    for name, found in {**evaluation.get("sets", {}), **evaluation.get("benchmarks", {})}.items():
        for key, value in list(found.get("measures", {}).items())[:1]:
            yield name, key.replace("_", " "), measure(key, value.get("value")), interval(key, value)


def evaluations(run: Run) -> dict[tuple[str, str], Points]:
    """For each evaluation set and each measure for people, its values by step, as training found them."""
    found: dict[tuple[str, str], Points] = {}
    for line in run.lines:
        sets = line.get("eval")
        for name, result in sets.items() if isinstance(sets, dict) else ():
            for key in MEASURES:
                if key in result:
                    found.setdefault((name, key), []).append((line["step"], Measured.of(result, key)))
    return found


def change(key: str, first: float | None, last: float | None) -> str:
    """From where, and by how much: of a perplexity as a share, of an accuracy in points, else as the difference."""
    if first is None or last is None or first is last:
        return ""
    if key == "perplexity":
        return f"{percent(last / first - 1)}, from {measure(key, first)}"
    if is_share(key):
        return f"{100 * (last - first):+.1f} points, from {measure(key, first)}".replace("-", "−")
    return f"{last - first:+.3g}, from {measure(key, first)}".replace("-", "−")


def measure(key: str, value: float | None) -> str:
    """A value of a measure: an accuracy in per cent, what is below 1 with three decimals."""
    if value is not None and is_share(key):
        return f"{100 * value:.1f} %"
    if value is not None and abs(value) < 1:
        return f"{value:.3f}".replace("-", "−")
    return number(value, 4)


def interval(key: str, value: Mapping[str, Any]) -> str:
    """`95 %: low to high`; nothing where there is no interval."""
    low, high = value.get("low"), value.get("high")
    return "" if low is None or high is None else f"95 %: {measure(key, low)} to {measure(key, high)}"
