"""Runs contenders one after another, each in a process of its own, in rounds. It knows no contender by name.

A contender is a script that prints one JSON line last. Rounds alternate their order, so that a machine that grows
slower or faster while we measure favours nobody; the best round counts, because what disturbs only ever slows down.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Result = dict[str, Any]
SHOWN_LINES = 15
QUIET_CORES = 0.1


def plain_environment(cache: Path) -> dict[str, str]:
    """A user's environment: without anything that Velocity's launcher sets, with no network and an empty cache."""
    from velocity.launch.local import environment

    set_by_us = set(environment(1, 1, gpus=False)) - {"PATH"}
    kept = {name: value for name, value in os.environ.items() if name not in set_by_us}
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(cache / "datasets")}
    return {**kept, **offline}


def velocity_environment(cache: Path) -> dict[str, str]:
    """The same with what `velocity run` gives the one process that it starts on this machine."""
    from velocity.launch.local import environment
    from velocity.planner.hardware import detect

    hardware = detect()
    place = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "0",
    }
    added = environment(1, hardware.cores, gpus=bool(hardware.gpus))
    return {**plain_environment(cache), **added, **place}


def run_script(script: Path, arguments: Sequence[str], environment: Mapping[str, str]) -> Result:
    """What the script printed last, as JSON; RuntimeError with the end of its messages where it failed.

    `others_cores` is added: how many cores the rest of the machine kept busy meanwhile. Two programs that both use
    all cores slow each other down many times over, so where it is not near 0 the time means nothing.
    """
    command = [sys.executable, str(script), *arguments]
    started = time.perf_counter(), _others_seconds()
    done = subprocess.run(command, env=dict(environment), capture_output=True, text=True, check=False)
    others_cores = max(0.0, _others_seconds() - started[1]) / (time.perf_counter() - started[0])
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        said = "\n".join([*lines, *done.stderr.splitlines()][-SHOWN_LINES:])
        raise RuntimeError(f"{' '.join(command)} ended with status {done.returncode}:\n{said}")
    result: Result = json.loads(lines[-1])
    return {**result, "others_cores": round(others_cores, 2)}


def _others_seconds() -> float:
    """Processor time that this machine has spent on anything but us and our ended children; 0 where it does not say."""
    path = Path("/proc/stat")
    if not path.exists():
        return 0.0
    user, nice, system, _, _, irq, softirq = map(int, path.read_text().split()[1:8])
    ours = os.times()
    spent = (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
    return spent - ours.user - ours.system - ours.children_user - ours.children_system


def disturbed(results: Mapping[str, Result]) -> list[str]:
    """A note that warns where others used the machine while we measured."""
    most = max(result.get("others_cores", 0.0) for result in results.values())
    return [f"NOT QUIET: other programs kept up to {most:.1f} cores busy; measure again"] if most > QUIET_CORES else []


def order(names: Sequence[str], rounds: int) -> list[str]:
    """Who runs when: every name once a round, every second round from the back."""
    return [name for number in range(rounds) for name in (names if number % 2 == 0 else names[::-1])]


def hold(names: Sequence[str], rounds: int, run: Callable[[str], Result], least: str = "seconds") -> dict[str, Result]:
    """Each contender's best round, that of the `least`; in the order of `names`."""
    best: dict[str, Result] = {}
    for number, name in enumerate(order(names, rounds), 1):
        result = run(name)
        print(f"[{number}/{len(names) * rounds}] {name}: {result['seconds']:.2f} s", file=sys.stderr, flush=True)
        best[name] = min(best.get(name, result), result, key=lambda found: float(found[least]))
    return {name: best[name] for name in names}


def peak_bytes() -> int:
    """The highest resident memory of this process since it was started (not of the one that it was forked from)."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
