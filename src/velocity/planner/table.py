"""A plan as plain values and as a table for people. It decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from velocity.config.training import TrainingJob
from velocity.planner.candidates import Candidate
from velocity.planner.hardware import GIB
from velocity.planner.plan import Plan

SHOWN = 8  # candidates in the table; --json has all
FIXES = {
    "device": "more or larger GPUs, a shorter data.sequence_length, strategy.offload or an adapter",
    "host": "more host memory, strategy.offload to nvme with a path, or more nodes",
    "nvme": "a larger disk, or more nodes",
}


def describe(plan: Plan, price: float | None = None) -> dict[str, Any]:
    """What plan.json holds: the machine, what was chosen and why, and every candidate."""
    found: dict[str, Any] = {"task": plan.loaded.job.task, "model": plan.loaded.job.model.path}
    if plan.setting is None or plan.chosen is None:
        return {**found, "chosen": None, "candidates": [], "reasons": reasons(plan)}
    setting = plan.setting
    machine = {
        "name": setting.cluster.name, "kind": setting.cluster.kind, "nodes": setting.cluster.nodes,
        "processes": setting.processes, "device_gib": round(plan.chosen.room / GIB, 2),
        "host_gib": setting.cluster.hardware.memory_gib, "guesses": list(setting.cluster.guesses),
    }  # fmt: skip
    found |= {"machine": machine, "parameters": setting.size.parameters, "calibrated": plan.calibrated}
    candidates = [candidate(one, setting.cluster.nodes, price) for one in plan.candidates]
    return {**found, "chosen": candidates[0], "candidates": candidates, "reasons": reasons(plan)}


def reasons(plan: Plan) -> dict[str, str]:
    """Why each value was chosen that the job left open."""
    chosen = {key: why for key, why in plan.loaded.origins.items() if why.startswith("planner: ")}
    return {key: why.removeprefix("planner: ") for key, why in chosen.items()}


def candidate(one: Candidate, nodes: int, price: float | None) -> dict[str, Any]:
    """A candidate as plain values; its parts in bytes, a rank's."""
    strategy = one.job.strategy.model_dump(mode="json")
    seconds = finish_seconds(one)
    cost = None if price is None or seconds is None else round(seconds / 3600 * price * nodes, 2)
    return {
        "words": one.words, "fits": one.fits, "strategy": strategy, "micro": one.job.batch.micro,
        "device_bytes": round(one.memory.device.total), "device": one.memory.device.describe(),
        "host_bytes": round(one.memory.host.total), "host": one.memory.host.describe(),
        "nvme_bytes": round(one.memory.nvme),
        "tokens_per_second": round(one.speed.tokens_per_second, 1), "step_seconds": round(one.speed.seconds, 4),
        "bound": one.speed.bound, "finish_seconds": None if seconds is None else round(seconds), "cost": cost,
        "short_bytes": {place: round(count) for place, count in one.short.items()},
        "would_fit_with": [FIXES[place] for place in one.short],
    }  # fmt: skip


def finish_seconds(one: Candidate) -> float | None:
    """Until the job's duration is over; None where that is in epochs, whose length the data decide."""
    duration = one.job.duration
    if duration.steps is not None:
        return duration.steps * one.speed.seconds
    return None if duration.tokens is None else duration.tokens / one.speed.tokens_per_second


def print_plan(plan: Plan, price: float | None = None) -> None:
    """The plan for a person, on standard output."""
    described = describe(plan, price)
    if described["chosen"] is None:
        print(f"{described['model']}: the model's size is not known yet: its config.json is not here")
        return
    for line in lines(described, plan.loaded.job):
        print(line)


def lines(described: Mapping[str, Any], job: TrainingJob) -> list[str]:
    """The table: the machine, what is chosen part by part, and the candidates, best first."""
    machine, chosen = described["machine"], described["chosen"]
    head = f"{described['model']}: {described['parameters'] / 1e9:,.3g} billion parameters on {machine['name']}, "
    head += f"{machine['processes']} process(es), {machine['device_gib']:,.1f} GiB each"
    made = [head, *(f"  a guess: {guess}" for guess in machine["guesses"])]
    made += [f"  {described['calibrated']}"] if described["calibrated"] else []
    state = "fits" if chosen["fits"] else "does not fit"
    made += ["", f"best: {chosen['words']} ({job.strategy.precision}), {state}", *_parts("device", chosen)]
    made += _parts("host", chosen) if chosen["host_bytes"] else []
    made += [f"  nvme   {chosen['nvme_bytes'] / GIB:>9,.2f} GiB"] if chosen["nvme_bytes"] else []
    made += [_rate(chosen), "", "candidates, best first"]
    made += [_row(one) for one in described["candidates"][:SHOWN]]
    left = len(described["candidates"]) - SHOWN
    return [*made, f"  … and {left} more: --json"] if left > 0 else made


def _parts(place: str, chosen: Mapping[str, Any]) -> list[str]:
    """The bytes of a place, a rank's, part by part."""
    named = [f"{name} {count / GIB:,.2f}" for name, count in chosen[place].items() if count]
    return [f"  {place:<6} {chosen[f'{place}_bytes'] / GIB:>9,.2f} GiB a rank: {', '.join(named)}"]


def _rate(chosen: Mapping[str, Any]) -> str:
    """Tokens a second, time to the end, and cost."""
    rate = f"  {chosen['tokens_per_second']:,.0f} tokens/s, {chosen['step_seconds']:,.3g} s a step, most of it "
    rate += str(chosen["bound"])
    if chosen["finish_seconds"] is not None:
        rate += f"; done in {chosen['finish_seconds'] / 3600:,.2f} h"
    return rate + (f", {chosen['cost']:,.2f} dollars" if chosen["cost"] is not None else "")


def _row(one: Mapping[str, Any]) -> str:
    """A candidate in a line; below one that does not fit, what would make it."""
    start = f"  {one['words']:<52} {one['device_bytes'] / GIB:>9,.2f} GiB {one['tokens_per_second']:>12,.0f} tokens/s"
    if one["fits"]:
        return start
    short = ", ".join(f"{count / GIB:,.1f} GiB of {place} memory" for place, count in one["short_bytes"].items())
    return f"{start}  lacks {short}; {'; '.join(one['would_fit_with'])}"
