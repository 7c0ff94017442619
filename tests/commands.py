"""Starts the `velocity` command as a user does, and looks at what it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def velocity(*arguments: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """The command's exit status, standard output and standard error."""
    command = [sys.executable, "-m", "velocity", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def start(*arguments: object) -> subprocess.Popen[str]:
    """The command, running, in a process group of its own."""
    command = [sys.executable, "-m", "velocity", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def step_lines(run: Path) -> list[dict[str, Any]]:
    """The step lines of a run's metrics.jsonl that are whole."""
    if not (run / "metrics.jsonl").exists():
        return []
    text = (run / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return [line for line in lines if "loss" in line]


def losses(run: Path) -> list[tuple[int, float, float]]:
    """(step, loss, gradient norm) of every step."""
    return [(line["step"], line["loss"], line["grad_norm"]) for line in step_lines(run)]


def processes_naming(text: str) -> list[int]:
    """Ids of the processes (but our own) whose command line holds `text`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if text in (entry / "cmdline").read_text().replace("\0", " "):
                    found.append(int(entry.name))
            except OSError:  # it ended while we looked
                continue
    return found
